"""Types, generators and inputs of models, checked before JAX meets them."""

import jax
import jax.numpy as jnp
from flax import nnx

from gfnet_jax.errors import UserError
from gfnet_jax.text import printable


def check_dtype(dtype: object) -> None:
  """Raises UserError unless matrix products can be of this type.

  JAX would make float32 of float64 unless it is told to allow 64 bits.
  """
  try:
    known = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
  except TypeError:
    known = False
  if not known:
    raise UserError(
      f"dtype is {printable(repr(dtype))}, expected a float type such as jax.numpy.bfloat16"
    )
  if jnp.dtype(dtype) == jnp.float64 and not jax.config.jax_enable_x64:
    raise UserError(
      "dtype is float64, of which JAX would silently make float32; set the environment variable "
      "JAX_ENABLE_X64=1, call jax.config.update('jax_enable_x64', True), or take float32"
    )


def check_rngs(rngs: object) -> None:
  """Raises UserError unless initial weights can be drawn from it."""
  if not isinstance(rngs, nnx.Rngs) or not hasattr(rngs, "params"):
    raise UserError(
      f"rngs is {printable(repr(rngs))}, expected a source of parameters such as flax.nnx.Rngs(0)"
    )


def check_input(what: str, x: object, expected: tuple[int, int, int], advice: str = "") -> None:
  """Checks images or tokens: real numbers of the shape (batch, height, width, channels).

  Args:
    what: what they are and what got them, for the message.
    x: an array, of JAX or NumPy.
    expected: height, width and channels.
    advice: what to do about another shape.

  Raises:
    UserError: for other shapes, other types, or what is no array.
  """
  if not hasattr(x, "shape") or not hasattr(x, "dtype"):
    raise UserError(f"{what} as {type(x).__name__}, expected an array of JAX or NumPy")
  if len(x.shape) != 4 or x.shape[1:] != expected:
    raise UserError(
      f"{what} of shape {x.shape}, expected (batch, height, width, channels) = "
      f"(batch, {', '.join(map(str, expected))}){advice}"
    )
  if not any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer)):
    raise UserError(f"{what} of type {x.dtype}, expected real numbers such as float32")
