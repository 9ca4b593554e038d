"""What the arguments of `create_model` may be, whether a person or a file gives them."""

import itertools
import math
import operator
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

from gfnet_jax.errors import UserError

LARGEST_SIDE = 65_536  # pixels
MOST_BLOCKS, MOST_STAGES = 1000, 16


class Range(NamedTuple):
  """Values that an argument may have, and how an error describes them."""

  holds: Callable[[Any], bool]
  expected: str


def _is_whole(value: Any, low: int, high: float) -> bool:
  """Of Python's, NumPy's or JAX's integers."""
  try:
    return not isinstance(value, bool) and low <= operator.index(value) <= high
  except TypeError:
    return False


def _whole(low: int, high: int) -> Range:
  return Range(
    lambda value: _is_whole(value, low, high), f"at least {low} and at most {high}, an integer"
  )


def _entries(values: Any) -> list | None:
  """A sequence's, as far as a model can have as many; None if it is none."""
  try:
    return list(itertools.islice(values, MOST_STAGES + 1))
  except TypeError:
    return None


def _per_stage(high: int) -> Range:
  """What is no sequence of sizes at all, its module names."""

  def holds(values: Any) -> bool:
    entries = _entries(values) or []
    largest = max((entry for entry in entries if _is_whole(entry, 0, math.inf)), default=0)
    return len(entries) <= MOST_STAGES and largest <= high

  return Range(holds, f"at most {MOST_STAGES} stages, each of at most {high}")


def _is_image_size(value: Any) -> bool:
  entries = _entries(value)
  sides = [value] if entries is None else entries
  return all(_is_whole(side, -LARGEST_SIDE, LARGEST_SIDE) for side in sides)


def _is_number(value: Any) -> bool:
  return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


TEXT = Range(lambda value: isinstance(value, str), "a name")
FLAG = Range(lambda value: isinstance(value, bool), "true or false")
NUMBER = Range(_is_number, "a finite number")
POSITIVE = Range(lambda value: _is_number(value) and 0 < value <= 1000, "more than 0, up to 1000")

ARGUMENTS = {  # what else is wrong with them is found where they are used
  "name": TEXT,
  "image_size": Range(
    _is_image_size, f"a side or (height, width) in pixels, at most {LARGEST_SIDE}"
  ),
  "num_classes": _whole(0, 10_000_000),
  "in_dim": _whole(1, 10_000),
  "patch_size": _whole(1, LARGEST_SIDE),
  "embed_dim": _whole(1, 1_000_000),
  "embed_dims": _per_stage(1_000_000),
  "depth": _whole(1, MOST_BLOCKS),
  "depths": _per_stage(MOST_BLOCKS),
  "decoder": TEXT,
  "decoder_dims": _per_stage(1_000_000),
  "mlp_ratio": POSITIVE,
  "drop_path_rate": NUMBER,
  "layer_scale_init": NUMBER,
  "mixer": TEXT,
  "backend": TEXT,
  "filter_precision": TEXT,
  "dynamic_size": Range(lambda value: value is None or isinstance(value, str), "a name or None"),
  "remat": FLAG,
  "scan": FLAG,
}


def check_arguments(arguments: Mapping[str, Any]) -> None:
  """Raises UserError for the first argument of a type or a size that no model can have.

  Nothing is built for that: a depth of a billion would otherwise take forever.
  Arguments that are not in the table are not looked at.
  """
  for name, value in arguments.items():
    allowed = ARGUMENTS.get(name)
    if allowed and not allowed.holds(value):
      raise UserError(f"{name} is {value!r}, expected {allowed.expected}")
