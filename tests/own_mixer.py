"""A token mixer of one's own, as a user would add it; see `register`."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gfnet_jax.models.mixers import MIXERS


class Gate(nnx.Module):
  """Multiplies every token by a learned gain and adds the mean of all tokens."""

  def __init__(self, dim, height, width, *, backend, dtype, rngs):
    self.gain = nnx.Param(1 + 0.1 * jax.random.normal(rngs.params(), (height, width, dim)))
    self.backend, self.dtype = backend, dtype  # only to see them arrive

  def __call__(self, tokens):
    tokens = tokens.astype(jnp.float32)
    return tokens * self.gain[...][None] + tokens.mean((1, 2), keepdims=True)

  @staticmethod
  def resize_params(params, before, after):
    """Takes the nearest gain."""
    assert params["gain"].shape[:2] == before
    rows, columns = (np.arange(new) * old // new for old, new in zip(before, after, strict=True))
    return {"gain": params["gain"][rows[:, None], columns[None]]}


class GateWithoutRule(nnx.Module):
  """As `Gate`, but cannot be carried to another grid."""

  __init__, __call__ = Gate.__init__, Gate.__call__


class MeanOnly(nnx.Module):
  """Has no parameter that depends on the grid, and so needs no rule."""

  def __init__(self, dim, height, width, *, backend, dtype, rngs):
    self.gain = nnx.Param(jax.random.normal(rngs.params(), (dim,)))

  def __call__(self, tokens):
    tokens = tokens.astype(jnp.float32)
    return tokens + tokens.mean((1, 2), keepdims=True) * self.gain[...][None, None, None]


def register(monkeypatch):
  """The one line per mixer, for the time of a test."""
  for name, mixer in (("gate", Gate), ("no-rule", GateWithoutRule), ("mean", MeanOnly)):
    monkeypatch.setitem(MIXERS, name, mixer)
