"""Host-side image transforms: decoding, crops, resizing, flips (Pillow in, uint8 out)."""

import contextlib
import dataclasses
import io
import math
import random
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageEnhance, UnidentifiedImageError

from gfnet_jax.data.randaugment import INTERPOLATIONS, draw_interpolation, parse_randaugment
from gfnet_jax.errors import UserError
from gfnet_jax.models.gfnet import ImageSize, as_height_width

RESIZE_FREE_SIZE = 32  # up to this side, images are taken as they are (official: datasets.py)
FAST_DETAIL = 0.5  # pixels that fast decoding keeps of a crop, per pixel of the result and side
CROP_ATTEMPTS = 10  # after which a crop is taken from the centre (official: timm transforms.py)


class BadImageError(ValueError):
  """Encoded data that is no readable image: corrupt, truncated, empty or a bomb."""


def open_image(data: bytes) -> Image.Image:
  """Reads the header of an image file of any format that Pillow knows; decodes no pixels.

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
  """`open_image`, then `load_rgb`: a whole image file to a decoded image of mode RGB."""
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


@dataclasses.dataclass(kw_only=True)
class TrainTransform:
  """Crop, flip, then RandAugment or colour jitter (official: datasets.py, timm 0.4.12).

  Picklable; an image's result depends on the image and on the generator alone.

  Args:
    image_size: side of the result, or (height, width).
    crop: 'random_resized' resizes a random part; 'pad' cuts a random window out of
      the image in a black frame, without resizing (official for sizes up to 32).
    scale: smallest and largest area of a random resized crop, as part of the image's.
    ratio: smallest and largest width / height of a random resized crop.
    padding: width in pixels of the black frame; 0 for none.
    flip: probability of the horizontal flip.
    interpolation: 'bilinear', 'bicubic' or 'random' (one of both for each image), for
      the random resized crop and RandAugment.
    auto_augment: string of RandAugment, or '' for none.
    color_jitter: strength of the colour jitter, in effect only if auto_augment is ''.
    fast_decode: trades exactness for speed in random resized crops. Of images from
      `open_image`, JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where the crop
      keeps FAST_DETAIL of the result's pixels per side; every filter is bilinear,
      whatever `interpolation` says, and sees the crop's surroundings.

  Raises:
    UserError: for an unknown crop, interpolation or auto_augment.
  """

  image_size: ImageSize
  crop: str = "random_resized"
  scale: tuple[float, float] = (0.08, 1.0)
  ratio: tuple[float, float] = (3 / 4, 4 / 3)
  padding: int = 4
  flip: float = 0.5
  interpolation: str = "bicubic"
  auto_augment: str = "rand-m9-mstd0.5-inc1"
  color_jitter: float = 0.4
  fast_decode: bool = False

  def __post_init__(self):
    self.image_size = as_height_width(self.image_size)
    _require_choice("crop", self.crop, ("random_resized", "pad"))
    _require_choice("interpolation", self.interpolation, INTERPOLATIONS)
    self._filter = "bilinear" if self.fast_decode else self.interpolation
    self._augment = (
      parse_randaugment(self.auto_augment, interpolation=self._filter)
      if self.auto_augment
      else None
    )

  def __call__(self, image: Image.Image, rng: random.Random) -> np.ndarray:
    """Maps an opened or decoded image to (height, width, 3), uint8; draws from `rng` alone.

    Raises:
      BadImageError: if an opened image turns out to be damaged.
      UserError: if crop is 'pad' and the framed image is smaller than image_size.
    """
    if self.crop == "pad":
      image = padded_crop(load_rgb(image), self.image_size, rng, padding=self.padding)
    else:
      image = self._random_resized_crop(image, rng)
    if rng.random() < self.flip:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if self._augment:
      image = self._augment(image, rng)
    elif self.color_jitter:
      image = color_jitter(image, self.color_jitter, rng)
    return np.array(image)

  def _random_resized_crop(self, image: Image.Image, rng: random.Random) -> Image.Image:
    box = draw_crop(image.width, image.height, rng, scale=self.scale, ratio=self.ratio)
    resample = draw_interpolation(self._filter, rng)
    height, width = self.image_size
    if self.fast_decode:
      box = _reduce_decoding(image, box, self.image_size)
      return load_rgb(image).resize((width, height), resample, box=box)
    # Cropped first: the filter must not see pixels outside of the crop.
    return load_rgb(image).crop(box).resize((width, height), resample)


def _reduce_decoding(
  image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]
) -> tuple[float, float, float, float]:
  """Has a JPEG that is not decoded yet decoded at a part of its size; the box at that size."""
  left, top, right, bottom = box
  reduction = min((bottom - top) / size[0], (right - left) / size[1]) / FAST_DETAIL
  original_width = image.width
  at_least = tuple(math.ceil(side / max(1, reduction)) for side in image.size)
  drafted = image.draft(None, at_least)
  scale = drafted[1][2] / original_width if drafted else 1
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

  Area and logarithm of width / height are uniform; after ten parts that do not fit,
  the largest centred one within the ratios is taken.

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


def padded_crop(
  image: Image.Image, size: tuple[int, int], rng: random.Random, *, padding: int
) -> Image.Image:
  """Cuts a random window out of the image in a black frame (torchvision's RandomCrop).

  Args:
    image: mode RGB.
    size: (height, width) of the window.
    rng: the only source of randomness; unused if there is but one window.
    padding: width of the frame in pixels.

  Raises:
    UserError: if the framed image is smaller than the window.
  """
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


def color_jitter(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
  """Brightness, contrast and saturation by random factors, in random order (torchvision)."""
  enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
  order = rng.sample(range(3), 3)
  factors = [rng.uniform(max(0, 1 - strength), 1 + strength) for _ in enhancers]
  for i in order:
    image = enhancers[i](image).enhance(factors[i])
  return image


def _require_choice(name: str, value: str, choices) -> None:
  if value not in choices:
    raise UserError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
