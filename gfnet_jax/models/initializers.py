"""Distributions of initial weights, as in the official gfnet.py, and the keys to draw them with."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

# The official truncated normal has std 0.02 and is cut at 100 sigma: a plain normal.
normal_init = nnx.initializers.normal(0.02)


def uniform_init(fan_in: int) -> nnx.initializers.Initializer:
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for a convolution."""
  bound = 1 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

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
