"""Blocks of equal shapes one after the other: separate, or stacked and looped over."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from gfnet_jax.models.layers import Block


class BlockStack(nnx.Module):
  """Blocks of equal shapes with their parameters stacked along a new first axis.

  XLA compiles one block and loops over the stack, and the optimiser handles a few large
  arrays in place of many small ones. Iterating gives the blocks one by one, as copies.

  Args:
    blocks: to take the parameters from; at least one.
  """

  def __init__(self, blocks: Sequence[Block]):
    self.drop_path_rates = tuple(block.drop_path_rate for block in blocks)
    structures, states = zip(*map(nnx.split, blocks), strict=True)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    self.stacked = nnx.merge(structures[0], stacked)

  def __len__(self) -> int:
    return len(self.drop_path_rates)

  def __iter__(self) -> Iterator[Block]:
    structure, states = nnx.split(self.stacked)
    for i, rate in enumerate(self.drop_path_rates):
      block = nnx.merge(structure, jax.tree.map(lambda leaf, i=i: leaf[i], states))
      block.drop_path_rate = rate
      yield block

  def __call__(self, x: jax.Array, keys: jax.Array | None, *, remat: bool = False) -> jax.Array:
    """Maps tokens (batch, height, width, channels), float32, through all blocks.

    Args:
      x: the tokens.
      keys: (blocks,) PRNG keys in training, or None in inference.
      remat: whether the backward pass computes the inside of a block again.
    """
    structure, states = nnx.split(self.stacked)
    call = jax.checkpoint(_call, static_argnums=0) if remat else _call

    def step(x, inputs):
      return call(structure, inputs[0], x, *inputs[1:]), None

    inputs = states, keys, jnp.array(self.drop_path_rates, jnp.float32)
    return jax.lax.scan(step, x, inputs)[0]


Blocks = nnx.List | BlockStack


def apply_blocks(blocks: Blocks, x: jax.Array, keys: jax.Array | None, *, remat: bool) -> jax.Array:
  """As `BlockStack.__call__`, for separate blocks as well."""
  if isinstance(blocks, BlockStack):
    return blocks(x, keys, remat=remat)
  for i, block in enumerate(blocks):
    key = None if keys is None else keys[i]
    if remat:
      x = jax.checkpoint(_call, static_argnums=0)(*nnx.split(block), x, key)
    else:
      x = block(x, key=key)
  return x


def _call(
  structure: nnx.GraphDef,
  state: nnx.State,
  x: jax.Array,
  key: jax.Array | None,
  drop_path_rate: jax.Array | None = None,
) -> jax.Array:
  return nnx.merge(structure, state)(x, key=key, drop_path_rate=drop_path_rate)
