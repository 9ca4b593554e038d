"""From an image and its mask to arrays, on the host: one transform to train, one to evaluate.

The recipe is that of PVT for Semantic FPN on ADE20K, in the form of mmsegmentation's pipelines:
whatever moves pixels moves those of the image and of the mask alike.
"""

import dataclasses
import random

import numpy as np
from PIL import Image

from gfnet_jax.data.decode import load_rgb
from gfnet_jax.data.segmentation.distortion import distort
from gfnet_jax.errors import UserError
from gfnet_jax.models.image_size import ImageSize, as_height_width

IGNORED = 255  # the label of pixels of no class
LONGEST = 4  # times the shorter side; what is longer is made smaller (2048 for 512)
CROP_ATTEMPTS = 10  # after which a crop is taken whatever it shows
MEAN_COLOUR = (124, 116, 104)  # ImageNet's, near 0 once normalised: beyond the image
BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST


def fitted_size(height: int, width: int, short_side: float) -> tuple[int, int]:
  """(height, width) of an image whose shorter side becomes `short_side`, in its proportions.

  If the longer side would become more than LONGEST times that, it becomes that instead.
  """
  factor = min(short_side / min(height, width), LONGEST * short_side / max(height, width))
  return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


class MaskedEvalTransform:
  """Resizes whole images; their masks stay as they are, at the size of the original.

  The shorter side becomes that of `fitted_size`, and each side is then rounded up to a multiple
  of the network's coarsest stride (AlignResize of PVT's code). The image is resized once, by
  Pillow's bilinear filter. Picklable.

  Args:
    short_side: in pixels.
    stride: in pixels.
  """

  def __init__(self, short_side: int, stride: int):
    self.short_side, self.stride = short_side, stride

  def input_size(self, height: int, width: int) -> tuple[int, int]:
    """(height, width) to which an image of a size is resized."""
    sides = fitted_size(height, width, self.short_side)
    return tuple(-(-side // self.stride) * self.stride for side in sides)

  def __call__(self, image: Image.Image) -> np.ndarray:
    """Maps an image of mode RGB to (height, width, 3), uint8."""
    height, width = self.input_size(image.height, image.width)
    return np.array(image.resize((width, height), BILINEAR))


@dataclasses.dataclass(kw_only=True)
class MaskedTrainTransform:
  """Random size, crop, flip and colours; picklable.

  Args:
    image_size: side of the result, or (height, width).
    scale: smallest and largest size, as a factor of the one with which `MaskedEvalTransform` would
      evaluate; uniform.
    max_class_share: of the pixels of a crop that have a class; where one class has more, another
      crop is drawn, up to CROP_ATTEMPTS times.
    flip: probability of the horizontal flip.
    distortion: probability of each of the changes of colours in `distort`.

  Raises:
    UserError: for a scale that is not two positive numbers in order.
  """

  image_size: ImageSize
  scale: tuple[float, float] = (0.5, 2.0)
  max_class_share: float = 0.75
  flip: float = 0.5
  distortion: float = 0.5

  def __post_init__(self):
    self.image_size = as_height_width(self.image_size)
    if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 100:
      raise UserError(
        f"segmentation.scale is {self.scale}, expected the smallest and the largest factor, such "
        "as 0.5, 2"
      )

  def __call__(
    self, image: Image.Image, labels: Image.Image, rng: random.Random
  ) -> tuple[np.ndarray, np.ndarray]:
    """Maps an image and its labels to those of one crop.

    Args:
      image: opened or decoded.
      labels: mode L, of the same size: a class per pixel, or IGNORED.
      rng: the only source of randomness.

    Returns:
      (height, width, 3) and (height, width), uint8. What lies beyond the image is of the mean
      colour and IGNORED.

    Raises:
      BadImageError: if an opened image turns out to be damaged.
    """
    short_side = min(self.image_size) * rng.uniform(*self.scale)
    height, width = fitted_size(image.height, image.width, short_side)
    image = load_rgb(image).resize((width, height), BILINEAR)
    labels = labels.resize((width, height), NEAREST)
    box = self._draw_box(labels, rng)
    image, labels = image.crop(box), labels.crop(box)
    if rng.random() < self.flip:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
      labels = labels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = distort(image, self.distortion, rng)
    size = self.image_size[::-1]
    pixels, classes = Image.new("RGB", size, MEAN_COLOUR), Image.new("L", size, IGNORED)
    pixels.paste(image, (0, 0))
    classes.paste(labels, (0, 0))
    return np.array(pixels), np.array(classes)

  def _draw_box(self, labels: Image.Image, rng: random.Random) -> tuple[int, int, int, int]:
    """The crop: left, top, right, bottom; smaller than the result where the image is."""
    height, width = (
      min(side, whole)
      for side, whole in zip(self.image_size, (labels.height, labels.width), strict=True)
    )
    for _ in range(CROP_ATTEMPTS + 1):
      top = rng.randint(0, labels.height - height)
      left = rng.randint(0, labels.width - width)
      box = (left, top, left + width, top + height)
      counts = np.array(labels.crop(box).histogram()[:IGNORED])
      if (counts > 0).sum() > 1 and counts.max() < self.max_class_share * counts.sum():
        break
    return box
