"""Blocks of equal size one after the other: unrolled, recomputed or in a compiled loop."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from gfnet_jax.models.layers import Block


def apply_blocks(
  blocks: Sequence[Block],
  x: jax.Array,
  keys: Sequence[jax.Array | None],
  *,
  remat: bool,
  scan: bool,
) -> jax.Array:
  """Maps tokens (batch, height, width, channels), float32, through all blocks.

  Args:
    blocks: of the same shapes.
    x: the tokens.
    keys: a PRNG key per block in training, or None per block in inference.
    remat: whether the backward pass computes the inside of a block again.
    scan: whether XLA compiles one block and loops over the stacked parameters. They
      are stacked here, so that the model keeps one set of names.
  """
  if not (remat or scan):
    for block, key in zip(blocks, keys, strict=True):
      x = block(x, key=key)
    return x

  structure, _ = nnx.split(blocks[0])

  def apply(x, inputs):
    state, key, rate = inputs
    return nnx.merge(structure, state)(x, key=key, drop_path_rate=rate), None

  if remat:
    apply = jax.checkpoint(apply)
  states = [nnx.state(block) for block in blocks]
  rates = [jnp.float32(block.drop_path_rate) for block in blocks]
  inputs = list(zip(states, keys, rates, strict=True))
  if scan:
    return jax.lax.scan(apply, x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *inputs))[0]
  for block_inputs in inputs:
    x, _ = apply(x, block_inputs)
  return x
