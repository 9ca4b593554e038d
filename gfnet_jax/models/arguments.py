"""What models are built from and called with, checked before JAX meets it."""

import operator
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from gfnet_jax.errors import UserError
from gfnet_jax.text import printable


def as_size(name: str, value: object, *, or_zero: bool = False) -> int:
  """Returns a positive integer of Python's, NumPy's or JAX's types as an int.

  Raises:
    UserError: for anything else; a bool is no size.
  """
  try:
    size = -1 if isinstance(value, bool) else operator.index(value)
  except TypeError:
    size = -1
  if size < (0 if or_zero else 1):
    expected = "a positive integer" + (" or 0" if or_zero else "")
    raise UserError(f"{name} is {printable(repr(value))}, expected {expected}")
  return size


def as_sizes(**values: object) -> list[int]:
  """`as_size` of every argument, by its name."""
  return [as_size(name, value) for name, value in values.items()]


def as_sizes_per_stage(name: str, values: Sequence[object], expected: str) -> tuple[int, ...]:
  """A sequence of sizes as a tuple.

  Raises:
    UserError: that says what was expected, for anything else.
  """
  try:
    return tuple(as_size(name, value) for value in values)
  except (TypeError, UserError) as error:
    raise UserError(f"{name} is {printable(repr(values))}, expected {expected}") from error


def as_places(name: str, values: Iterable[object], count: int) -> list[int]:
  """Numbers of things in a row, from 0, or from -1 backwards, as numbers from 0.

  Raises:
    UserError: for what is no sequence of integers, or a number of nothing in the row.
  """
  try:
    places = [operator.index(value) for value in values]
  except TypeError:
    places = [count]
  if not all(-count <= place < count for place in places):
    expected = f"a list of numbers from 0 to {count - 1}" if count > 1 else "[0]"
    raise UserError(
      f"{name} is {printable(repr(values))}, expected {expected}: the model has {count} {name}"
    )
  return [place % count for place in places]


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
