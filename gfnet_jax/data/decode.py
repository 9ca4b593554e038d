"""Image files to Pillow images of mode RGB, as the official loader decodes them."""

import contextlib
import io
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError


class BadImageError(ValueError):
  """Data that cannot be decoded as an image: corrupt, truncated, empty or a bomb."""


def open_image(data: bytes) -> Image.Image:
  """Reads the header of an image file in any format that Pillow knows; decodes no pixels.

  Raises:
    BadImageError: if Pillow cannot read it, with Pillow's reason.
  """
  with _reading_errors():
    return Image.open(io.BytesIO(data))


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


def decode_image(data: bytes) -> Image.Image:
  """`open_image`, then `load_rgb`: from the bytes of a file to a decoded image of mode RGB."""
  return load_rgb(open_image(data))


@contextlib.contextmanager
def _reading_errors() -> Iterator[None]:
  try:
    yield
  except UnidentifiedImageError:
    raise BadImageError("not a readable image: empty or of no known format") from None
  # Damaged files raise OSError, SyntaxError, ValueError, struct.error and more.
  except Exception as error:
    raise BadImageError(f"not a readable image: {error}") from error
