"""Small random affine distortions of training images.

They are given as a string, such as affine-r10-t0.1-s0.1-h10: `affine`, then sections of a letter
and a number, in any order, each of which is 0 (no such distortion) unless given. As in
torchvision's RandomAffine, all are uniform:

    r  largest rotation, in degrees to either side
    t  largest translation, as a fraction of the width and of the height
    s  largest change of scale: a factor from 1 - s to 1 + s
    h  largest horizontal shear, in degrees to either side
"""

import dataclasses
import math
import random
import re

from PIL import Image

from gfnet_jax.data.randaugment import draw_interpolation
from gfnet_jax.errors import UserError

LIMITS = {"r": 180.0, "t": 1.0, "s": 0.9, "h": 60.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine:
  """Rotates, shears, scales and shifts an image about its centre, by random amounts.

  What is uncovered becomes black, as in the crop `pad`.

  Args:
    rotation: the largest angle, in degrees.
    translation: the largest shift, as a fraction of the width and of the height.
    scale: the largest change of the factor 1.
    shear: the largest angle, in degrees.
    interpolation: 'bilinear', 'bicubic' or 'random', for `draw_interpolation`.
  """

  rotation: float = 0.0
  translation: float = 0.0
  scale: float = 0.0
  shear: float = 0.0
  interpolation: str = "bicubic"

  def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
    matrix = affine_matrix(
      image.size,
      angle=math.radians(rng.uniform(-self.rotation, self.rotation)),
      shift=[rng.uniform(-self.translation, self.translation) * side for side in image.size],
      scale=1 + rng.uniform(-self.scale, self.scale),
      shear=math.radians(rng.uniform(-self.shear, self.shear)),
    )
    resample = draw_interpolation(self.interpolation, rng)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample)


def affine_matrix(
  size: tuple[int, int], *, angle: float, shift: list[float], scale: float, shear: float
) -> tuple[float, ...]:
  """The map from a point of the result to the point of the image that is seen there.

  A point of the image is sheared, then scaled, turned counter-clockwise and shifted, all but the
  shift about the centre; Pillow asks for the inverse of that.

  Args:
    size: (width, height) in pixels.
    angle: in radians.
    shift: to the right and down, in pixels.
    scale: a factor.
    shear: in radians; positive moves the upper half to the right.

  Returns:
    (a, b, c, d, e, f) of x' = a x + b y + c and y' = d x + e y + f, as Image.transform takes them.
  """
  cos, sin, slope = math.cos(angle) / scale, math.sin(angle) / scale, math.tan(shear)
  # Turned and scaled back, then sheared back; y points down.
  a, b, d, e = cos + slope * sin, slope * cos - sin, sin, cos
  center_x, center_y = size[0] / 2, size[1] / 2
  x, y = center_x + shift[0], center_y + shift[1]
  return a, b, center_x - a * x - b * y, d, e, center_y - d * x - e * y


def parse_affine(text: str, *, interpolation: str) -> Affine:
  """Makes an augmentation from a string such as affine-r10-t0.1.

  Args:
    text: as explained at the top.
    interpolation: 'bilinear', 'bicubic' or 'random'.

  Raises:
    UserError: if the text is malformed.
  """
  amounts = {}
  for section in text.split("-")[1:]:
    match = re.fullmatch(r"([rtsh])(\d+(?:\.\d+)?)", section)
    if not match or match[1] in amounts or float(match[2]) > LIMITS[match[1]]:
      limits = ", ".join(f"{letter} up to {limit:g}" for letter, limit in LIMITS.items())
      raise UserError(
        f"auto_augment {text!r} has the section {section!r}, expected affine and {limits}, each at "
        "most once, such as affine-r10-t0.1-s0.1-h10"
      )
    amounts[match[1]] = float(match[2])
  return Affine(
    rotation=amounts.get("r", 0.0),
    translation=amounts.get("t", 0.0),
    scale=amounts.get("s", 0.0),
    shear=amounts.get("h", 0.0),
    interpolation=interpolation,
  )
