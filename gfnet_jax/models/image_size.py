"""Image sizes, and the token grids that they are divided into."""

from gfnet_jax.errors import UserError

ImageSize = int | tuple[int, int]


def as_height_width(image_size: ImageSize) -> tuple[int, int]:
  """Returns (height, width) for an image size given as one side or as a pair, in pixels.

  Raises:
    UserError: if it is neither a positive integer nor a pair of them.
  """
  sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
  if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
    raise UserError(f"image_size is {image_size!r}, expected a side or (height, width) in pixels")
  return sides


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
