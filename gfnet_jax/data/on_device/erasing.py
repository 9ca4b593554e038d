"""Random erasing (arXiv:1708.04896; official: timm 0.4.12 random_erasing.py).

The boxes are drawn on the host, from the sample's own generator; the noise on the device.
"""

import math
import random
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gfnet_jax.errors import UserError

AREA = (0.02, 1 / 3)  # as a fraction of the image, before division by the number of boxes
ASPECT = (0.3, 1 / 0.3)  # height / width
ATTEMPTS = 10  # after which a box is left out
MODES = ("pixel", "rand", "const")


class Erasing(NamedTuple):
  """The `erasing` section of a config: arguments of `draw_erasing_boxes` and `erase`."""

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


def erase(images: jax.Array, boxes: jax.Array, key: jax.Array, *, mode: str = "pixel") -> jax.Array:
  """Fills the boxes of every image; where boxes overlap, the last one counts.

  Args:
    images: (batch, height, width, channels), float, normalised.
    boxes: (batch, count, 4), int32, as from `draw_erasing_boxes`.
    key: PRNG key of the noise.
    mode: 'pixel' fills with N(0, 1) for each pixel and channel, 'rand' with one
      N(0, 1) colour for each box, 'const' with 0.

  Returns:
    The images with the same shape and dtype.

  Raises:
    UserError: for an unknown mode.
  """
  if mode not in MODES:
    raise UserError(f"unknown mode of random erasing {mode!r}, expected one of {', '.join(MODES)}")
  batch, height, width, channels = images.shape
  noise_shape = (batch, 1, 1, channels) if mode == "rand" else images.shape
  rows, columns = (
    jnp.arange(height, dtype=jnp.int32)[None, :, None, None],
    jnp.arange(width, dtype=jnp.int32)[None, None, :, None],
  )
  for i, box_key in enumerate(jax.random.split(key, boxes.shape[1])):
    top, left, h, w = boxes[:, i].T[:, :, None, None, None]
    inside = (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
    fill = 0
    if mode != "const":  # in float32, whatever the images are: a seed makes the same noise
      fill = jax.random.normal(box_key, noise_shape, jnp.float32).astype(images.dtype)
    images = jnp.where(inside, fill, images)
  return images
