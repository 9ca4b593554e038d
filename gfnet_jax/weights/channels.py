"""Weights for colour images carried to images of another number of channels."""

import numpy as np
from numpy.typing import DTypeLike

from gfnet_jax.errors import UserError

CHANNELS = 256  # at most


def adapt_channels(kernel: np.ndarray, in_dim: int, dtype: DTypeLike = np.float32) -> np.ndarray:
  """The kernel of the first convolution, as timm adapts it (`adapt_input_conv`).

  For one channel the three are summed, which answers a grey image as the original does
  the same image in colour. For others they are repeated, and scaled by 3 / in_dim.

  Args:
    kernel: (dim, channels, patch, patch), of any float type.
    in_dim: channels of the images.
    dtype: of the result, float32 or float64.

  Returns:
    (dim, in_dim, patch, patch), of that type; the kernel itself if it fits already.

  Raises:
    UserError: if the kernel fits neither `in_dim` nor 3 channels, or `in_dim` is not 1 to 256.
  """
  if not 1 <= in_dim <= CHANNELS:
    raise UserError(f"the images have {in_dim} channels, expected 1 to {CHANNELS}")
  if kernel.ndim == 4 and kernel.shape[1] == in_dim:
    return kernel
  if kernel.ndim != 4 or kernel.shape[1] != 3:
    raise UserError(
      f"the first convolution of the weights has shape {kernel.shape}, expected (channels, 3, "
      f"patch, patch) to be carried to {in_dim} input channels; take weights for 3 channels"
    )
  kernel = kernel.astype(dtype)
  if in_dim == 1:
    return kernel.sum(axis=1, keepdims=True)
  repeated = np.tile(kernel, (1, -(-in_dim // 3), 1, 1))[:, :in_dim]
  return repeated * kernel.dtype.type(3 / in_dim)
