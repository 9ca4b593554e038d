"""Image sizes, and the token grids that they are divided into."""

from gfnet_jax.errors import UserError
from gfnet_jax.models.sizes import as_size
from gfnet_jax.text import printable

ImageSize = int | tuple[int, int]


def as_height_width(image_size: ImageSize) -> tuple[int, int]:
  """Returns (height, width) for an image size given as one side or as a pair, in pixels.

  The integers may be NumPy's or JAX's, and the pair any sequence.

  Raises:
    UserError: if it is neither a positive integer nor a pair of them.
  """
  try:
    sides = tuple(image_size)
  except TypeError:
    sides = (image_size, image_size)
  try:
    height, width = (as_size("side", side) for side in sides)
  except ValueError as error:  # of another number of sides, or a UserError
    raise UserError(
      f"image_size is {printable(repr(image_size))}, expected a side or (height, width) in pixels"
    ) from error
  return height, width


def divide(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
  """Returns the (height, width) of the token grid of an image, in tokens.

  Raises:
    UserError: if the patches do not divide the height and the width.
  """
  height, width = image_size
  if height % patch_size or width % patch_size:
    raise UserError(
      f"image_size {height}x{width} is not divisible by {patch_size} (patch size times the "
      "down-sampling of the stages); choose multiples of it for the height and the width"
    )
  return height // patch_size, width // patch_size
