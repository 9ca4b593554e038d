"""From Pillow images to arrays, on the host: one transform to train and one to evaluate."""

import dataclasses
import random

import numpy as np
from PIL import Image

from gfnet_jax.data.augmentations import color_jitter, make_augmentation
from gfnet_jax.data.crops import CROPS, CropOptions
from gfnet_jax.data.enlarging import enlarged_part
from gfnet_jax.data.randaugment import INTERPOLATIONS
from gfnet_jax.errors import UserError
from gfnet_jax.models.image_size import ImageSize, as_height_width
from gfnet_jax.names import look_up

RESIZE_FREE_SIZE = 32  # up to this side, images are not resized (official: datasets.py)
MOSTLY_CUT_OFF = 16  # times the pixels that are kept; thin images grow to any number of them


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
  if size_to_cover(size) is None:
    if size != (image.height, image.width):
      raise UserError(
        f"got an image of {image.height}x{image.width} (height x width), expected "
        f"{size[0]}x{size[1]}: image sizes up to {RESIZE_FREE_SIZE} are not resized to; "
        "choose a larger image_size or the images' own"
      )
    return np.array(image)
  width, height = _covering_width_height(image, size)
  # Python's round: halves go to the even side, as in torchvision's CenterCrop.
  top = round((height - size[0]) / 2)
  left = round((width - size[1]) / 2)
  box = (left, top, left + size[1], top + size[0])
  if height >= image.height and width * height > MOSTLY_CUT_OFF * size[0] * size[1]:
    return enlarged_part(image, (width, height), box)
  return np.array(image.resize((width, height), Image.Resampling.BICUBIC).crop(box))


def size_to_cover(image_size: tuple[int, int]) -> tuple[int, int] | None:
  """(height, width) that an image is to cover before its centre is cut out; None: as it is."""
  if max(image_size) <= RESIZE_FREE_SIZE:
    return None
  return _enlarged(image_size)


def _enlarged(size: tuple[int, int]) -> tuple[int, int]:
  height, width = (int(256 / 224 * side) for side in size)
  return height, width


def _covering_width_height(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
  """(width, height) to which the image is resized before the centre crop of evaluation."""
  height, width = _enlarged(size)
  if image.height * width <= image.width * height:
    return int(height * image.width / image.height), height
  return width, int(width * image.height / image.width)


class EvalTransform:
  """What happens to images in evaluation, for a fixed image size; picklable.

  Args:
    image_size: side of the result, or (height, width).
    whole: whether the whole image is resized to it (bicubic), whatever its shape, in place of
      `eval_transform`; an image of just that size stays as it is.
  """

  def __init__(self, image_size: ImageSize, *, whole: bool = False):
    self.image_size, self._whole = as_height_width(image_size), whole

  def __call__(self, image: Image.Image) -> np.ndarray:
    if not self._whole:
      return eval_transform(image, self.image_size)
    height, width = self.image_size
    if image.size == (width, height):
      return np.array(image)
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))


@dataclasses.dataclass(kw_only=True)
class TrainTransform:
  """Crop, flip, then an augmentation or colour jitter (official: datasets.py, timm 0.4.12).

  Picklable; the result depends on the image and the generator alone.

  Args:
    image_size: side of the result, or (height, width).
    crop: a name in `crops.CROPS`: 'random_resized' resizes a random part; 'pad' cuts a
      random window out of the image in a black frame, without resizing (official for
      sizes up to 32).
    scale: smallest and largest area of a random resized crop, as a fraction of the image's.
    ratio: smallest and largest width / height of a random resized crop.
    padding: width in pixels of the black frame; 0 for none.
    flip: probability of the horizontal flip.
    interpolation: 'bilinear', 'bicubic' or 'random' (one of the two for each image), for
      the random resized crop and the augmentation.
    auto_augment: a string whose first word is a name in `augmentations.AUGMENTATIONS`, such
      as rand-m9-mstd0.5-inc1 (RandAugment), or '' for none.
    color_jitter: strength of the colour jitter, in effect only if auto_augment is ''.
    fast_decode: trades exactness for speed in random resized crops. Of images from
      `open_image`, JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where the crop
      keeps `crops.FAST_DETAIL` of the result's pixels per side; every filter is bilinear,
      whatever `interpolation` says, and sees the crop's surroundings.

  Raises:
    UserError: for an unknown crop, interpolation or auto_augment, or a scale of no area.
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
    if not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1):
      raise UserError(f"augment.scale is {self.scale}, expected two fractions of 1, such as 0.1, 1")
    look_up("interpolation", self.interpolation, INTERPOLATIONS)
    interpolation = "bilinear" if self.fast_decode else self.interpolation
    # Looked up now: a worker process unpickles what the tables hold in its parent.
    self._crop = look_up("crop", self.crop, CROPS)
    self._crop_options = CropOptions(
      image_size=self.image_size,
      scale=self.scale,
      ratio=self.ratio,
      padding=self.padding,
      interpolation=interpolation,
      fast_decode=self.fast_decode,
    )
    self._augment = make_augmentation(self.auto_augment, interpolation=interpolation)

  def __call__(self, image: Image.Image, rng: random.Random) -> np.ndarray:
    """Maps an opened or decoded image to (height, width, 3), uint8; draws from `rng` alone.

    Raises:
      BadImageError: if an opened image turns out to be damaged.
      UserError: if crop is 'pad' and the framed image is smaller than image_size, or if a
        crop or an augmentation does not keep its contract.
    """
    image = self._crop(image, rng, self._crop_options)
    if rng.random() < self.flip:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if self._augment is not None:
      image = self._augment(image, rng)
    elif self.color_jitter:
      image = color_jitter(image, self.color_jitter, rng)
    height, width = self.image_size
    if getattr(image, "mode", None) != "RGB" or image.size != (width, height):
      raise UserError(
        f"crop {self.crop!r} and auto_augment {self.auto_augment!r} gave {image!r}, expected a "
        f"Pillow image of mode RGB and {width} x {height} pixels"
      )
    return np.array(image)
