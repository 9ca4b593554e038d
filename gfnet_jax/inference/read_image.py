"""One image as a model is evaluated on it."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from PIL import Image

from gfnet_jax.data.decode import (
  BadImageError,
  is_clipped,
  load_rgb,
  open_image,
  warn_of_clipping,
)
from gfnet_jax.data.transforms import eval_transform
from gfnet_jax.errors import UserError

ImageLike = str | Path | Image.Image | np.ndarray | jax.Array
Result = TypeVar("Result")


def try_to_read(
  image: ImageLike, image_size: tuple[int, int], clipped: list[str]
) -> np.ndarray | UserError:
  """`read_image`, or what it raises."""
  try:
    return read_image(image, image_size, clipped)
  except UserError as error:
    return error


def read_image(
  image: ImageLike, image_size: tuple[int, int], clipped: list[str] | None = None
) -> np.ndarray:
  """An image as the model is evaluated on it, (height, width, 3), uint8.

  Args:
    image: a path, a Pillow image or an array.
    image_size: of the result.
    clipped: receives the image's name if `is_clipped`; the first one is warned of.

  Raises:
    UserError: if it cannot be read, or is of another type or size.
  """
  return read_with(image, lambda rgb: eval_transform(rgb, image_size), clipped)


def read_with(
  image: ImageLike, transform: Callable[[Image.Image], Result], clipped: list[str] | None = None
) -> Result:
  """What a transform makes of an image of mode RGB; the rest is as for `read_image`."""
  clipped = [] if clipped is None else clipped
  if isinstance(image, str | Path):
    try:
      with Path(image).open("rb") as file:  # Pillow takes of a large file only what it needs
        return _to_pixels(open_image(file), transform, str(image), clipped)
    except (OSError, BadImageError) as error:
      reason = getattr(error, "strerror", None) or error
      raise UserError(f"cannot read {image}: {reason}") from error
  if isinstance(image, np.ndarray | jax.Array):
    if image.dtype != np.uint8 or not (
      image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    ):
      raise UserError(
        f"an image is an array {image.shape} of {image.dtype}, expected (height, width, 3) or "
        "(height, width) of uint8"
      )
    image = Image.fromarray(np.asarray(image))
  if not isinstance(image, Image.Image):
    raise UserError(
      f"an image is of type {type(image).__name__}, expected a path, a Pillow image or an array"
    )
  name = str(getattr(image, "filename", "") or "an image")
  try:
    return _to_pixels(image, transform, name, clipped)
  except BadImageError as error:
    raise UserError(f"{name} cannot be read: {error}") from error


def _to_pixels(
  image: Image.Image,
  transform: Callable[[Image.Image], Result],
  name: str,
  clipped: list[str],
) -> Result:
  """An opened image through a transform, as `read_with`.

  Raises:
    BadImageError: if it is damaged.
    UserError: if it is not of a size that the transform takes.
  """
  if is_clipped(image):
    if not clipped:
      warn_of_clipping(name)
    clipped.append(name)
  try:
    return transform(load_rgb(image))
  except UserError as error:
    raise UserError(f"{name}: {error}") from error
