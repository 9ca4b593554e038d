"""Random changes of brightness, contrast, saturation and hue.

They are given as a string, such as jitter-b0.4-c0.4-s0.4-h0.4: `jitter`, then sections of a letter
and a number, in any order, each of which is 0 (no such change) unless given. As in torchvision's
ColorJitter, the four come in random order, and all are uniform:

    b, c, s  brightness, contrast and saturation: a factor from max(0, 1 - x) to 1 + x
    h        hue: a shift of -x to x of the whole circle, at most 0.5
"""

import dataclasses
import random
import re
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

from gfnet_jax.errors import UserError

LIMITS = {"b": 100.0, "c": 100.0, "s": 100.0, "h": 0.5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jitter:
  """Changes the colours of an image by random amounts (torchvision's ColorJitter).

  Args:
    brightness, contrast, saturation: the largest change of the factor 1.
    hue: the largest shift, as a fraction of the circle.
  """

  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0

  def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
    changes = [
      _enhance(ImageEnhance.Brightness, _factor(self.brightness, rng)),
      _enhance(ImageEnhance.Contrast, _factor(self.contrast, rng)),
      _enhance(ImageEnhance.Color, _factor(self.saturation, rng)),
    ]
    shift = rng.uniform(-self.hue, self.hue)
    changes.append(lambda image: shift_hue(image, shift))
    for change in rng.sample(changes, len(changes)):
      image = change(image)
    return image


def shift_hue(image: Image.Image, shift: float) -> Image.Image:
  """The image with its hues moved by a fraction of the circle, in steps of 1/256."""
  if not shift:  # to HSV and back is not exact
    return image
  hue, saturation, value = image.convert("HSV").split()
  moved = (np.asarray(hue, np.int32) + int(shift * 255)) % 256
  hue = Image.fromarray(moved.astype(np.uint8))
  return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _factor(strength: float, rng: random.Random) -> float:
  return rng.uniform(max(0.0, 1 - strength), 1 + strength)


def _enhance(enhancer: Callable, factor: float) -> Callable[[Image.Image], Image.Image]:
  return lambda image: enhancer(image).enhance(factor)


def parse_jitter(text: str, *, interpolation: str) -> Jitter:
  """Makes the jitter that a string describes; it moves no pixels, and so interpolates none.

  Raises:
    UserError: if the string is malformed, or a number is out of its range.
  """
  del interpolation
  found = {}
  for section in text.split("-")[1:]:
    match = re.fullmatch(r"([bcsh])(\d+(?:\.\d+)?)", section)
    if not match or match[1] in found or float(match[2]) > LIMITS[match[1]]:
      raise UserError(
        f"auto_augment is {text!r}, expected jitter and sections of b, c, s (0 to 100) and h (0 to "
        "0.5) with numbers, each at most once, such as jitter-b0.4-c0.4-s0.4-h0.4"
      )
    found[match[1]] = float(match[2])
  names = {"b": "brightness", "c": "contrast", "s": "saturation", "h": "hue"}
  return Jitter(**{names[letter]: value for letter, value in found.items()})
