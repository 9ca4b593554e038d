"""Sizes and numbers of things as models are given them, checked."""

import operator
from collections.abc import Iterable, Sequence

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
