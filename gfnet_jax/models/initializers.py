"""Distributions of initial weights, as in the official gfnet.py."""

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
