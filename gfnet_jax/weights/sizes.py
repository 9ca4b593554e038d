"""How large the weights in a file may be, so that reading them stays within memory."""

import math
from collections.abc import Sequence

from gfnet_jax.weights.kinds import UnsuitableFileError

FILE_LIMIT = 1 << 33  # bytes; a training checkpoint of the largest network has 0.9e9
NUMBERS_LIMIT = 1 << 27  # the largest network has 54 million
DIMENSIONS = 32


def check_shape(shape: Sequence[int]) -> None:
  """Raises UnsuitableFileError for a tensor that no network of ours can have.

  Zero-size tensors count by their other sides, which NumPy would have to multiply, too.
  """
  check_dimensions(shape)
  check_count(max(shape, default=0))  # before multiplying numbers of any length
  check_count(math.prod(max(side, 1) for side in shape))


def check_dimensions(shape: Sequence[int]) -> None:
  """Raises UnsuitableFileError for more dimensions than NumPy has had at all times."""
  if len(shape) > DIMENSIONS:
    raise UnsuitableFileError(
      f"it holds a tensor of {len(shape)} dimensions, expected at most {DIMENSIONS}; save the "
      "state dict of the network alone"
    )


def check_count(numbers: int) -> None:
  """Raises UnsuitableFileError for so many numbers."""
  if numbers > NUMBERS_LIMIT:
    raise UnsuitableFileError(
      f"it holds {min(numbers, 10**30):.3g} numbers, expected at most {NUMBERS_LIMIT}, more than "
      "twice those of the largest network; is it the right file?"
    )
