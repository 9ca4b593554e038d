"""Normalisation of images on the device, with the statistics of ImageNet."""

import jax
import jax.numpy as jnp
import numpy as np

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalize(images: jax.Array) -> jax.Array:
  """(x / 255 - mean) / std per channel, as torchvision's ToTensor and Normalize.

  Equal to them within 1e-6: XLA multiplies by reciprocals instead of dividing.

  Args:
    images: (..., 3), uint8, RGB.

  Returns:
    The same shape, float32.
  """
  shape = (1,) * (images.ndim - 1) + (3,)
  mean, std = (np.asarray(values, np.float32).reshape(shape) for values in (MEAN, STD))
  return (images.astype(jnp.float32) / 255 - mean) / std
