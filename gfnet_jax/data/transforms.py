"""Host-side image transforms: decoding, crops, resizing, flips (Pillow in, uint8 out)."""

import io

import numpy as np
from PIL import Image

from gfnet_jax.errors import UserError
from gfnet_jax.models.gfnet import ImageSize, as_height_width

RESIZE_FREE_SIZE = 32  # up to this side, images are taken as they are (official: datasets.py)


class BadImageError(ValueError):
  """Encoded data that is no readable image: corrupt, truncated, empty or a bomb."""


def decode_image(data: bytes) -> Image.Image:
  """Decodes an image file as the official loader does (torchvision, folder.py).

  Grey, palette, CMYK, transparent and 16-bit images become RGB by Pillow's own
  conversion; an EXIF orientation is ignored.

  Args:
    data: a whole image file of any format that Pillow reads.

  Returns:
    A decoded image of mode RGB.

  Raises:
    BadImageError: if Pillow cannot read it, with Pillow's reason.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      return image.convert("RGB")
  # Damaged files raise OSError, SyntaxError, ValueError, struct.error and more.
  except Exception as error:
    raise BadImageError(f"not a readable image ({len(data)} bytes): {error}") from error


def eval_transform(image: Image.Image, image_size: ImageSize) -> np.ndarray:
  """Resizes to cover 256/224 of the image size, then cuts out the centre (official datasets.py).

  For a square image size the shorter side becomes trunc(256/224 * size). For
  another shape, height and width have one such target each, the image keeps its
  proportions, and the side that needs the larger scale meets its target. Image
  sizes of up to 32 x 32 are for data sets of just that size: nothing is resized.

  Args:
    image: mode RGB.
    image_size: side of the result, or (height, width).

  Returns:
    (height, width, 3), uint8; bit-equal to the official result with the same Pillow.

  Raises:
    UserError: if a small image size differs from the image's.
  """
  size = as_height_width(image_size)
  if max(size) <= RESIZE_FREE_SIZE:
    if size != (image.height, image.width):
      raise UserError(
        f"got an image of {image.height}x{image.width} (height x width), expected "
        f"{size[0]}x{size[1]}: image sizes up to {RESIZE_FREE_SIZE} are not resized to; "
        "choose a larger image_size or the images' own"
      )
    return np.array(image)
  image = image.resize(_covering_width_height(image, size), Image.Resampling.BICUBIC)
  # Python's round: halves go to the even side, as in torchvision's CenterCrop.
  top = round((image.height - size[0]) / 2)
  left = round((image.width - size[1]) / 2)
  return np.array(image.crop((left, top, left + size[1], top + size[0])))


def _covering_width_height(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
  """(width, height) to which the image is resized before the centre crop of evaluation."""
  height, width = (int(256 / 224 * side) for side in size)
  if image.height * width <= image.width * height:
    return int(height * image.width / image.height), height
  return width, int(width * image.height / image.width)


class EvalTransform:
  """`eval_transform` with its image size, to be called on images; picklable."""

  def __init__(self, image_size: ImageSize):
    self.image_size = as_height_width(image_size)

  def __call__(self, image: Image.Image) -> np.ndarray:
    return eval_transform(image, self.image_size)
