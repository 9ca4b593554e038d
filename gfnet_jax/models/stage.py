"""The blocks of a stage, one after the other: separate, or stacked and looped over."""

import functools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gfnet_jax.models.functional import Params
from gfnet_jax.models.layers import Block
from gfnet_jax.models.resize import Array

STACKED = re.compile(r"(blocks(?:\.\d+)?)\.stacked\.(.+)")  # (stage, parameter of a block)


class BlockList(nnx.List):
  """Blocks as separate modules."""

  def __call__(self, x: jax.Array, keys: jax.Array | None, *, remat: bool = False) -> jax.Array:
    """Maps tokens (batch, height, width, channels), float32, through all blocks.

    Args:
      x: the tokens.
      keys: (blocks,) PRNG keys in training, or None in inference.
      remat: whether the backward pass computes the inside of every block again.
    """
    for i, block in enumerate(self):
      key = None if keys is None else keys[i]
      if remat:
        x = jax.checkpoint(_call, static_argnums=0)(*nnx.split(block), x, key)
      else:
        x = block(x, key=key)
    return x


class BlockStack(nnx.Module):
  """Blocks of equal shapes, their parameters stacked along a new first axis.

  XLA compiles one block and loops over the stack, and the optimiser handles a few large
  arrays in place of many small ones. Indexing and iterating return single blocks for
  reading: copies, which do not write through.

  Args:
    blocks: whose parameters are stacked; at least one.
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
    rate = self.drop_path_rates[operator.index(i)]  # refuses slices
    block = nnx.merge(structure, jax.tree.map(lambda leaf: leaf[i], states))
    block.drop_path_rate = rate
    return block

  def __iter__(self) -> Iterator[Block]:
    return map(self.__getitem__, range(len(self)))

  def __call__(self, x: jax.Array, keys: jax.Array | None, *, remat: bool = False) -> jax.Array:
    """As `BlockList.__call__`."""
    if not any(self.drop_path_rates):
      keys = None
    rates = jnp.array(self.drop_path_rates, x.dtype)
    return _loop(*nnx.split(self.stacked), x, keys, rates, remat)


Blocks = BlockList | BlockStack


def separate_blocks(params: Params) -> Params:
  """Parameters by the names that they have in a model without stacks."""
  separate = {}
  for name, value in params.items():
    if match := STACKED.fullmatch(name):
      stage, rest = match.groups()
      separate |= {f"{stage}.{i}.{rest}": value[i] for i in range(value.shape[0])}
    else:
      separate[name] = value
  return separate


def stack_blocks(separate: Mapping[str, Array], model_params: Params) -> dict[str, Array]:
  """Undoes `separate_blocks`, for the stacks among the parameters of a model."""
  params = {}
  for name, value in model_params.items():
    if match := STACKED.fullmatch(name):
      stage, rest = match.groups()
      arrays = [separate[f"{stage}.{i}.{rest}"] for i in range(value.shape[0])]
      params[name] = (np if isinstance(arrays[0], np.ndarray) else jnp).stack(arrays)
    elif name in separate:
      params[name] = separate[name]
  return params


@functools.partial(jax.jit, static_argnums=(0, 5))  # else every eager call would compile again
def _loop(
  structure: nnx.GraphDef,
  states: nnx.State,
  x: jax.Array,
  keys: jax.Array | None,
  rates: jax.Array,
  remat: bool,
) -> jax.Array:
  # Common subexpressions cannot undo the recomputation in a loop: no barriers needed.
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
