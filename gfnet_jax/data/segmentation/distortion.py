"""Random changes of colours that leave every pixel in its place (arXiv:1512.02325, section 2.2).

As mmsegmentation's PhotoMetricDistortion, with Pillow's conversion to hue and saturation, which has
256 steps of hue where OpenCV has 180.
"""

import random
from collections.abc import Callable

from PIL import Image

BRIGHTNESS = 32  # at most added or subtracted, of 255
FACTORS = (0.5, 1.5)  # of contrast and of saturation
HUE = 18 / 180  # of the circle, at most, to either side


def distort(image: Image.Image, probability: float, rng: random.Random) -> Image.Image:
  """Brightness, contrast, saturation and hue, each changed with a probability.

  Contrast comes before saturation and hue, or behind them, with equal probability.

  Args:
    image: mode RGB.
    probability: of each of the four.
    rng: the only source of randomness.

  Returns:
    An image of the same mode and size.
  """

  def drawn() -> bool:
    return rng.random() < probability

  if not probability:
    return image
  if drawn():
    added = rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    image = image.point(_table(lambda value: value + added) * 3)
  contrast_first = rng.random() < 0.5
  factor = rng.uniform(*FACTORS) if drawn() else 1.0
  contrast = _table(lambda value: value * factor) * 3
  if contrast_first:
    image = image.point(contrast)
  factor_of_saturation = rng.uniform(*FACTORS) if drawn() else 1.0
  turn = round(256 * rng.uniform(-HUE, HUE)) if drawn() else 0
  if factor_of_saturation != 1 or turn:
    hue = [(value + turn) % 256 for value in range(256)]
    saturation = _table(lambda value: value * factor_of_saturation)
    image = image.convert("HSV").point([*hue, *saturation, *range(256)]).convert("RGB")
  return image if contrast_first else image.point(contrast)


def _table(change: Callable[[float], float]) -> list[int]:
  """The new value of each of the 256."""
  return [min(255, max(0, int(change(value)))) for value in range(256)]
