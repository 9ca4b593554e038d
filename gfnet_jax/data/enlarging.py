"""A part of an enlarged image, without the rest of it.

Enlarging an image of 65535x1 pixels to a height of 256 makes 4 billion pixels, of which a
centre crop keeps 224x224. Pillow's `resize` with a `box` would not do: it takes the box
in single precision, so that other filter weights come out.
"""

import numpy as np
from PIL import Image

FIXED_POINT_BITS = 22  # of Pillow's filter weights (Resample.c: PRECISION_BITS)
REACH = 2  # pixels of the image to either side that the bicubic filter sees


def enlarged_part(
  image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]
) -> np.ndarray:
  """What `image.resize(size, Image.Resampling.BICUBIC).crop(box)` holds, bit for bit.

  Args:
    image: mode RGB.
    size: (width, height), neither smaller than the image's.
    box: (left, top, right, bottom) within this size.

  Returns:
    (bottom - top, right - left, 3), uint8.
  """
  left, top, right, bottom = box
  columns, column_weights = _bicubic(image.width, size[0], left, right)
  rows, row_weights = _bicubic(image.height, size[1], top, bottom)
  first_column, first_row = columns.min(), rows.min()
  source = image.crop((first_column, first_row, columns.max() + 1, rows.max() + 1))
  pixels = np.asarray(source).astype(np.int64)
  # Horizontally first, rounded in between: Pillow's order wherever an image grows.
  pixels = _filter(pixels.swapaxes(0, 1), columns - first_column, column_weights)
  return _filter(pixels.swapaxes(0, 1), rows - first_row, row_weights).astype(np.uint8)


def _bicubic(before: int, after: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
  """Where the pixels first, ..., last - 1 of a longer side come from.

  Every operation is Pillow's (Resample.c: precompute_coeffs, bicubic_filter), in its order.

  Returns:
    (last - first, 5) positions on the shorter side, and their weights, in fixed point.
  """
  scale = before / after
  centres = ((np.arange(first, last) + 0.5) * scale)[:, None]
  begin = np.maximum(0, np.trunc(centres - REACH + 0.5))
  end = np.minimum(before, np.trunc(centres + REACH + 0.5))
  positions = begin + np.arange(2 * REACH + 1)
  t = np.abs(positions - centres + 0.5)
  near = (1.5 * t - 2.5) * t * t + 1
  far = (((t - 5) * t + 8) * t - 4) * -0.5
  weights = np.where(t < 1, near, np.where(t < 2, far, 0)) * (positions < end)
  weights /= np.cumsum(weights, axis=1)[:, -1:]  # one after the other, unlike np.sum
  fixed = np.trunc(weights * 2**FIXED_POINT_BITS + np.copysign(0.5, weights))
  return np.minimum(positions, before - 1).astype(np.int64), fixed.astype(np.int64)


def _filter(pixels: np.ndarray, positions: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """The weighted sums along the first axis, rounded and clipped to 0 ... 255."""
  sums = np.einsum("it,it...->i...", weights, pixels[positions])
  return ((sums + 2 ** (FIXED_POINT_BITS - 1)) >> FIXED_POINT_BITS).clip(0, 255)
