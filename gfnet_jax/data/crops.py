"""Crops of training images, by name: a random part of an image, at the model's image size.

To add a crop, write a function with the signature of `Crop` and enter it in CROPS:

  def center(image: Image.Image, rng: random.Random, options: CropOptions) -> Image.Image:
    height, width = options.image_size
    return ImageOps.fit(load_rgb(image), (width, height))

  CROPS = {..., "center": center}

It is then taken by config.augment.crop = "center".
"""

import dataclasses
import math
import random
from typing import Protocol

from PIL import Image

from gfnet_jax.data.decode import allow_reduced, load_rgb
from gfnet_jax.data.randaugment import draw_interpolation
from gfnet_jax.errors import UserError

FAST_DETAIL = 0.5  # pixels of a crop that fast decoding keeps, per pixel of the result and side
CROP_ATTEMPTS = 10  # after which a crop is taken from the centre (official: timm transforms.py)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropOptions:
  """What a config asks of a crop; explained as arguments of `transforms.TrainTransform`.

  Attributes:
    image_size: (height, width) of the result in pixels.
    interpolation: 'bilinear', 'bicubic' or 'random', for `draw_interpolation`.
  """

  image_size: tuple[int, int]
  scale: tuple[float, float]
  ratio: tuple[float, float]
  padding: int
  interpolation: str
  fast_decode: bool


class Crop(Protocol):
  """Crops one image.

  A crop must be picklable, as functions of a module are, and everything random in it must
  be drawn from `rng`: a sample is to be the same in any process and after any restart.

  Args:
    image: as from `open_image`: usually not decoded yet, which `load_rgb` does.
    rng: the only source of randomness.
    options: what the config asks for.

  Returns:
    An image of mode RGB and of size options.image_size.

  Raises:
    BadImageError: if the image turns out to be damaged.
    UserError: if the image cannot be cropped with these options.
  """

  def __call__(
    self, image: Image.Image, rng: random.Random, options: CropOptions
  ) -> Image.Image: ...


def random_resized_crop(
  image: Image.Image, rng: random.Random, options: CropOptions
) -> Image.Image:
  """Resizes a random part of the image (timm 0.4.12 transforms.py); a `Crop`."""
  box = draw_crop(image.width, image.height, rng, scale=options.scale, ratio=options.ratio)
  resample = draw_interpolation(options.interpolation, rng)
  height, width = options.image_size
  if options.fast_decode:
    box = _reduce_decoding(image, box, options.image_size)
    return load_rgb(image).resize((width, height), resample, box=box)
  # Cropped before it is resized: the filter must not see pixels outside the crop.
  return load_rgb(image).crop(box).resize((width, height), resample)


def _reduce_decoding(
  image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]
) -> tuple[float, float, float, float]:
  """Lets a JPEG that is not decoded yet be decoded at a smaller size; the box at that size."""
  left, top, right, bottom = box
  reduction = min((bottom - top) / size[0], (right - left) / size[1]) / FAST_DETAIL
  scale = allow_reduced(image, tuple(math.ceil(side / max(1, reduction)) for side in image.size))
  return left * scale, top * scale, right * scale, bottom * scale


def draw_crop(
  width: int,
  height: int,
  rng: random.Random,
  *,
  scale: tuple[float, float],
  ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
  """Draws the part of an image for a random resized crop (timm 0.4.12 transforms.py).

  The area and the logarithm of width / height are uniform; after ten parts that do not
  fit, the largest centred one within the ratios is taken.

  Args:
    width: of the image, in pixels.
    height: of the image, in pixels.
    rng: the only source of randomness.
    scale: smallest and largest area, as a fraction of the image's.
    ratio: smallest and largest width / height.

  Returns:
    (left, top, right, bottom) in pixels, right and bottom exclusive.
  """
  for _ in range(CROP_ATTEMPTS):
    area = rng.uniform(*scale) * (width * height)
    aspect = math.exp(rng.uniform(*map(math.log, ratio)))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if w <= width and h <= height:
      top = rng.randint(0, height - h)
      left = rng.randint(0, width - w)
      return left, top, left + w, top + h
  w, h = width, height
  if width / height < ratio[0]:
    h = round(width / ratio[0])
  elif width / height > ratio[1]:
    w = round(height * ratio[1])
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def padded_crop(image: Image.Image, rng: random.Random, options: CropOptions) -> Image.Image:
  """Cuts a random window out of the image in a black frame (torchvision's RandomCrop); a `Crop`.

  If only one window fits, nothing is drawn from `rng`.

  Raises:
    UserError: if the framed image is smaller than the window.
  """
  image = load_rgb(image)
  size, padding = options.image_size, options.padding
  spare_rows = image.height + 2 * padding - size[0]
  spare_columns = image.width + 2 * padding - size[1]
  if min(spare_rows, spare_columns) < 0:
    raise UserError(
      f"got an image of {image.height}x{image.width} (height x width), padded by {padding}, "
      f"expected at least {size[0]}x{size[1]}; choose a smaller image_size or a resizing crop"
    )
  top = left = 0
  if spare_rows or spare_columns:
    top, left = rng.randint(0, spare_rows), rng.randint(0, spare_columns)
  top, left = top - padding, left - padding
  return image.crop((left, top, left + size[1], top + size[0]))  # black beyond the image


CROPS: dict[str, Crop] = {"random_resized": random_resized_crop, "pad": padded_crop}
