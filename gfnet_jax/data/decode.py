"""Image files to Pillow images of mode RGB, as the official loader decodes them."""

import contextlib
import functools
import io
import logging
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from gfnet_jax.text import printable

logger = logging.getLogger(__name__)
# Raster formats only: for others, such as EPS, Pillow starts external programs.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 120_000_000  # two copies of 4 bytes each, as converting takes, are less than 1 GB


class BadImageError(ValueError):
  """Data that cannot be decoded as an image: corrupt, truncated, empty or too large."""


def open_image(data: bytes | BinaryIO) -> Image.Image:
  """Reads the header of an image file in one of FORMATS; decodes no pixels.

  Args:
    data: the contents of the file, or the opened file, which must stay open until the
      image is decoded.

  Raises:
    BadImageError: if Pillow cannot read it, with Pillow's reason, or if it has more than
      MAX_PIXELS.
  """
  with _reading_errors():
    image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS)
  if image.width * image.height > MAX_PIXELS:
    raise BadImageError(
      f"too large: {image.width}x{image.height} pixels, expected at most {MAX_PIXELS:,} in all; "
      "make it smaller"
    )
  return image


def allow_reduced(image: Image.Image, at_least: tuple[int, int]) -> float:
  """Lets an opened JPEG be decoded at 1/2, 1/4 or 1/8 of its size; other formats stay as they are.

  Args:
    image: of `open_image`, not decoded yet.
    at_least: width and height, from 1 on, below which it does not go.

  Returns:
    The scale at which the image will be decoded, 1 for its full size.

  Raises:
    BadImageError: if Pillow cannot, with Pillow's reason.
  """
  width = image.width
  with _reading_errors():
    drafted = image.draft(None, at_least)
  return drafted[1][2] / width if drafted else 1


def load_values(image: Image.Image) -> Image.Image:
  """Decodes an opened image in its own mode: of a mask, the values are what counts.

  Raises:
    BadImageError: if Pillow cannot decode it, with Pillow's reason.
  """
  with _reading_errors():
    image.load()
  return image


def load_rgb(image: Image.Image) -> Image.Image:
  """Decodes an opened image as the official loader does (torchvision, folder.py).

  Grey, palette, CMYK, transparent and 16-bit images become RGB by Pillow's own
  conversion; an EXIF orientation is ignored.

  Raises:
    BadImageError: if Pillow cannot decode it, with Pillow's reason.
  """
  with _reading_errors():
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_image(data: bytes | BinaryIO) -> Image.Image:
  """`open_image`, then `load_rgb`: from an image file to a decoded image of mode RGB."""
  return load_rgb(open_image(data))


def is_clipped(image: Image.Image) -> bool:
  """Whether `load_rgb` clips the image's values to 0 ... 255, where it scales others.

  The same goes for grey images of 16 or 32 bits or of floats, which become white or black.
  """
  return image.mode == "F" or image.mode.startswith("I")


@functools.cache
def warn_of_clipping(name: str) -> None:
  """Says that an image is one of those that `is_clipped` finds; once, however often it is read."""
  logger.warning(
    "%s is a grey image of more than 8 bits: values above 255 become white, fractions "
    "black, as in the official loader; convert such images to 8 bits (others are not named)",
    printable(name),
  )


def image_suffixes() -> set[str]:
  """The endings of the names of files in FORMATS, such as ".jpg", in lower case."""
  return {end for end, format in Image.registered_extensions().items() if format in FORMATS}


@contextlib.contextmanager
def _reading_errors() -> Iterator[None]:
  try:
    yield
  except UnidentifiedImageError:
    raise BadImageError(
      f"not a readable image: empty, damaged, or none of {', '.join(FORMATS)}"
    ) from None
  # Damaged files raise OSError, SyntaxError, ValueError, struct.error and more.
  except Exception as error:
    reason = printable(error) or type(error).__name__
    raise BadImageError(f"not a readable image: {reason}") from error
