"""The boxes of random erasing, drawn on the host from the sample's own generator.

Source: arXiv:1708.04896; official: timm 0.4.12 random_erasing.py.
"""

import math
import random
from typing import NamedTuple

import numpy as np

AREA = (0.02, 1 / 3)  # as a fraction of the image, before division by the number of boxes
ASPECT = (0.3, 1 / 0.3)  # height / width
ATTEMPTS = 10  # after which a box is left out


class Erasing(NamedTuple):
  """The section `erasing` of a config: arguments of `draw_erasing_boxes` and of `erase`."""

  probability: float = 0.0
  max_count: int = 1
  mode: str = "pixel"


def draw_erasing_boxes(
  size: tuple[int, int], rng: random.Random, *, probability: float, max_count: int = 1
) -> np.ndarray:
  """Draws the boxes to erase from one image.

  Args:
    size: (height, width) of the image.
    rng: the only source of randomness.
    probability: that anything is erased.
    max_count: the number of boxes is uniform from 1 to this.

  Returns:
    (max_count, 4), int32: top, left, height, width of each box; zeros where there is none.
  """
  boxes = np.zeros((max_count, 4), np.int32)
  if rng.random() > probability:
    return boxes
  count = 1 if max_count == 1 else rng.randint(1, max_count)
  for i in range(count):
    boxes[i] = _draw_box(size, rng, count)
  return boxes


def _draw_box(size: tuple[int, int], rng: random.Random, count: int) -> tuple[int, int, int, int]:
  height, width = size
  for _ in range(ATTEMPTS):
    area = rng.uniform(*AREA) * (height * width) / count
    aspect = math.exp(rng.uniform(*map(math.log, ASPECT)))
    h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if h < height and w < width:
      top = rng.randint(0, height - h)
      return top, rng.randint(0, width - w), h, w
  return 0, 0, 0, 0
