"""Batch normalisation, whose running statistics are kept among the parameters."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gfnet_jax.models.functional import Params, split
from gfnet_jax.models.products import sum_type

EPSILON = 1e-5  # PyTorch's default, as is the momentum
MOMENTUM = 0.1  # weight of a batch in the running statistics
STATISTICS = ("running_mean", "running_variance")


class BatchNorm(nnx.Module):
  """Normalises every channel over the batch and all places (arXiv:1502.03167), as PyTorch's.

  In training by the statistics of the whole batch, on all devices together (PyTorch's SyncBN);
  in inference by their running means. Everything is float32, or float64 if it is built with that.

  The running statistics are `nnx.Param`, so that checkpoints, averages and resumed runs hold them
  like the rest; `is_statistic` tells them from what is trained.

  Args:
    dim: channels.
    dtype: float64 makes parameters and results float64; with any other type they are float32.
    rngs: taken as by every layer; scale and running variance start at 1, the others at 0.
  """

  def __init__(self, dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
    del rngs
    self.dtype = total = sum_type(dtype)
    self.scale = nnx.Param(jnp.ones((dim,), total))
    self.bias = nnx.Param(jnp.zeros((dim,), total))
    self.running_mean = nnx.Param(jnp.zeros((dim,), total))
    self.running_variance = nnx.Param(jnp.ones((dim,), total))

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps (batch, height, width, dim) of any float type to the same shape, float32 or float64.

    In training the running statistics are moved towards the batch's, in place.
    """
    x = x.astype(self.dtype)
    if train:
      mean = x.mean((0, 1, 2))
      variance = jnp.square(x - mean[None, None, None]).mean((0, 1, 2))
      count = x.size // x.shape[-1]
      self._move(self.running_mean, mean)
      self._move(self.running_variance, variance * (count / max(count - 1, 1)))  # unbiased
    else:
      mean, variance = self.running_mean[...], self.running_variance[...]
    factor = self.scale[...] * jax.lax.rsqrt(variance + EPSILON)
    return (x - mean[None, None, None]) * factor[None, None, None] + self.bias[...][
      None, None, None
    ]

  def _move(self, statistic: nnx.Param, value: jax.Array) -> None:
    moved = (1 - MOMENTUM) * statistic[...] + MOMENTUM * jax.lax.stop_gradient(value)
    statistic[...] = moved


def is_statistic(name: str) -> bool:
  """Whether a parameter's dotted name is that of a running statistic, which no gradient trains."""
  return name.rpartition(".")[2] in STATISTICS


def running_statistics(model: nnx.Module) -> Params:
  """All of a model by dotted name; {} if it has no batch norms."""
  return {name: value for name, value in split(model)[1].items() if is_statistic(name)}
