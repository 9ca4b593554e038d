"""Small pictures side by side, and the colours of numbers without a library of plots."""

import io

import numpy as np
from PIL import Image

from gfnet_jax.views.filters import FilterLayer

# ColorBrewer's YlGnBu (colorbrewer2.org), as in the figure of the paper.
YLGNBU = ("ffffd9", "edf8b1", "c7e9b4", "7fcdbb", "41b6c4", "1d91c0", "225ea8", "253494", "081d58")


def mosaic(pictures: np.ndarray) -> np.ndarray:
  """Puts pictures (rows, columns, height, width) side by side, with NaN between them.

  Returns:
    (rows * (height + 1) - 1, columns * (width + 1) - 1), float32.
  """
  rows, columns, height, width = pictures.shape
  padded = np.full((rows, height + 1, columns, width + 1), np.nan, np.float32)
  padded[:, :-1, :, :-1] = pictures.transpose(0, 2, 1, 3)
  return padded.reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]


def magnitudes(layers: list[FilterLayer], channels: list[int]) -> np.ndarray:
  """The figure of the paper: |response| in rows of layers and columns of channels.

  The mean is in the middle of each picture, at [height // 2, width // 2].

  Args:
    layers: of one stage.
    channels: of each of them.
  """
  pictures = [np.abs(layer.response[..., channels]) for layer in layers]
  return mosaic(_centred(pictures))


def kernels(layers: list[FilterLayer], channels: list[int]) -> np.ndarray:
  """The same of the kernels; the token itself is in the middle."""
  return mosaic(_centred([layer.kernel[..., channels] for layer in layers]))


def _centred(pictures: list[np.ndarray]) -> np.ndarray:
  """(height, width, channels) of each layer to (layers, channels, height, width)."""
  return np.fft.fftshift(np.stack(pictures), axes=(1, 2)).transpose(0, 3, 1, 2)


def to_png(values: np.ndarray, pixels: int = 3) -> tuple[bytes, tuple[int, int]]:
  """Numbers from 0 up to the greatest as a PNG in YlGnBu, NaN in white.

  Args:
    values: (height, width), at least 0.
    pixels: along each side of a number's square.

  Returns:
    The file, and its (width, height) in pixels.
  """
  table = np.array([list(bytes.fromhex(colour)) for colour in YLGNBU], np.float64)
  scaled = np.nan_to_num(values / (np.nanmax(values) or 1)) * (len(table) - 1)
  low = np.minimum(scaled.astype(int), len(table) - 2)
  colours = table[low] + (scaled - low)[..., None] * (table[low + 1] - table[low])
  colours[np.isnan(values)] = 255
  image = Image.fromarray(np.rint(colours).astype(np.uint8))
  image = image.resize((image.width * pixels, image.height * pixels), Image.Resampling.NEAREST)
  png = io.BytesIO()
  image.save(png, "PNG")
  return png.getvalue(), image.size
