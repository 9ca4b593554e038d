"""Blocks of equal shapes one after the other: separate, or stacked and looped over."""

import functools
import operator
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from gfnet_jax.models.layers import Block


class BlockStack(nnx.Module):
  """Blocks of equal shapes with their parameters stacked along a new first axis.

  XLA compiles one block and loops over the stack, and the optimiser handles a few large
  arrays in place of many small ones. Indexing and iterating give single blocks to read:
  copies, which do not write through.

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

  def __getitem__(self, i: int) -> Block:
    structure, states = nnx.split(self.stacked)
    rate = self.drop_path_rates[operator.index(i)]  # no slices
    block = nnx.merge(structure, jax.tree.map(lambda leaf: leaf[i], states))
    block.drop_path_rate = rate
    return block

  def __iter__(self) -> Iterator[Block]:
    return map(self.__getitem__, range(len(self)))

  def __call__(self, x: jax.Array, keys: jax.Array | None, *, remat: bool = False) -> jax.Array:
    """Maps tokens (batch, height, width, channels), float32, through all blocks.

    Args:
      x: the tokens.
      keys: (blocks,) PRNG keys in training, or None in inference.
      remat: whether the backward pass computes the inside of a block again.
    """
    if not any(self.drop_path_rates):
      keys = None
    rates = jnp.array(self.drop_path_rates, jnp.float32)
    return _loop(*nnx.split(self.stacked), x, keys, rates, remat)


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


@functools.partial(jax.jit, static_argnums=(0, 5))  # or every eager call would compile anew
def _loop(
  structure: nnx.GraphDef,
  states: nnx.State,
  x: jax.Array,
  keys: jax.Array | None,
  rates: jax.Array,
  remat: bool,
) -> jax.Array:
  # A loop cannot lose its recomputation to common subexpressions: no barriers needed.
  call = jax.checkpoint(_call, static_argnums=0, prevent_cse=False) if remat else _call

  def step(x, inputs):
    state, key, rate = inputs
    return call(structure, state, x, key, rate), None

  return jax.lax.scan(step, x, (states, keys, rates))[0]


def _call(
  structure: nnx.GraphDef,
  state: nnx.State,
  x: jax.Array,
  key: jax.Array | None,
  drop_path_rate: jax.Array | None = None,
) -> jax.Array:
  return nnx.merge(structure, state)(x, key=key, drop_path_rate=drop_path_rate)
