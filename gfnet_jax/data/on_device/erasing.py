"""Random erasing on the devices: noise in the boxes that were drawn on the host.

Source: arXiv:1708.04896; official: timm 0.4.12 random_erasing.py.
"""

import jax
import jax.numpy as jnp

from gfnet_jax.errors import UserError

MODES = ("pixel", "rand", "const")


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
