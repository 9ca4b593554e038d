"""What models are built from and called with, checked before JAX meets it."""

import operator

import jax
import jax.numpy as jnp
from flax import nnx

from gfnet_jax.errors import UserError
from gfnet_jax.text import printable


def as_size(name: str, value: object) -> int:
  """Returns a positive integer of Python's, NumPy's or JAX's types as an int.

  Raises:
    UserError: for anything else; a bool is no size.
  """
  try:
    size = 0 if isinstance(value, bool) else operator.index(value)
  except TypeError:
    size = 0
  if size < 1:
    raise UserError(f"{name} is {printable(repr(value))}, expected a positive integer")
  return size


def check_rngs(rngs: object) -> None:
  """Raises UserError unless initial weights can be drawn from it."""
  if not isinstance(rngs, nnx.Rngs) or not hasattr(rngs, "params"):
    raise UserError(
      f"rngs is {printable(repr(rngs))}, expected a source of parameters such as flax.nnx.Rngs(0)"
    )


def split_key(key: jax.Array, number: int) -> jax.Array:
  """Splits a PRNG key of stochastic depth.

  Raises:
    UserError: if it is none, or several.
  """
  try:
    return jax.random.split(key, number)
  except (TypeError, ValueError) as error:
    raise UserError(
      f"key is {printable(repr(key))}, expected one PRNG key such as jax.random.key(0)"
    ) from error


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
