"""Distributions of initial weights, as in the official gfnet.py, and the keys to draw them with.

Random numbers are drawn in float32 whatever the type of the model: a seed then makes the same
weights in float64, so that a run in float64 shows what rounding does to one in float32.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

DRAWN = jnp.float32  # the type of random numbers


def normal_init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = DRAWN) -> jax.Array:
  """N(0, 0.02^2): the official truncated normal is cut at 100 sigma, which is a plain one."""
  return nnx.initializers.normal(0.02)(key, shape, DRAWN).astype(dtype)


def uniform_init(fan_in: int) -> nnx.initializers.Initializer:
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for a convolution."""
  bound = 1 / math.sqrt(fan_in)

  def init(key, shape, dtype=DRAWN):
    return jax.random.uniform(key, shape, DRAWN, -bound, bound).astype(dtype)

  return init


def initial_rngs(seed: int) -> nnx.Rngs:
  """The keys of nnx.Rngs(seed), for models that are built while a function is traced.

  Returns:
    A source of `params` alone.
  """
  rngs = nnx.Rngs(params=seed)
  rngs.params = _KeyStream(seed, tag="params")
  return rngs


class _KeyStream(nnx.RngStream):
  """Counts its keys in Python.

  Flax counts them in an array, and asks for the sharding of every new count. Of one that is
  traced, jax answers with an error whose text takes longer with every block of the model.
  """

  def __init__(self, key: int, *, tag: str):
    super().__init__(key, tag=tag)
    self.drawn = 0

  def __call__(self) -> jax.Array:
    key = jax.random.fold_in(self.key[...], self.drawn)
    self.drawn += 1
    return key
