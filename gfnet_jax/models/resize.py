"""Resizing position embeddings and filters to another token grid, by one of several rules.

Everything here is linear in what it resizes, and computes with NumPy on NumPy's arrays, with JAX
on JAX's: then also inside a compiled function, and differentiably.
"""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gfnet_jax.models.products import sum_type
from gfnet_jax.names import look_up
from gfnet_jax.text import printable

Array = np.ndarray | jax.Array
Grid = tuple[int, int]  # (rows, columns) of tokens
Matrix = Callable[[int, int], np.ndarray]  # (size before, size after) to (after, before), float64

KEYS_A = np.float32(-0.75)  # of the bicubic kernel; `jax.image.resize` has -0.5


class Rule(NamedTuple):
  """How a rule resizes.

  Attributes:
    positions: matrix of one axis of a position embedding.
    filters: matrix of one axis of a filter.
    on_kernel: whether that acts on the filter as a convolution, or on its half spectrum.
  """

  positions: Matrix
  filters: Matrix
  on_kernel: bool


def check_rule(rule: object) -> None:
  """Raises UserError for what is no name in `RULES`."""
  look_up("rule", rule if isinstance(rule, str) else printable(repr(rule)), RULES)


def resize_positions(table: Array, size: Grid, rule: str = "official") -> Array:
  """Interpolates a position embedding, or another table with a row and a column per token.

  Args:
    table: (height, width, ...), any float type.
    size: (height, width) of the result.
    rule: a name in `RULES`.

  Returns:
    (*size, ...), float64 for a table of float64, else float32.
  """
  return _resize(table, size, RULES[rule].positions)


def resize_bicubic(table: Array, size: Grid, *, align_corners: bool) -> Array:
  """Interpolates over the first two axes; an unchanged size returns the values unchanged.

  This is what PyTorch does in the official fine-tuning at another resolution (main_gfnet.py).

  Args:
    table: (height, width, ...), any float type.
    size: (height, width) of the result.
    align_corners: True makes the centres of the corner cells coincide (official for
      filters), False the outer edges (official for position embeddings).

  Returns:
    (*size, ...), float64 for a table of float64, else float32.
  """
  return _resize(table, size, bicubic_of_centres if align_corners else bicubic_of_edges)


def resize_filter(weight: Array, before: Grid, after: Grid, rule: str = "official") -> Array:
  """Resizes a global filter.

  Args:
    weight: (2, height, width // 2 + 1, channels) for the grid before, any float type.
    before: (height, width) of the tokens that it filters.
    after: likewise, of the result.
    rule: a name in `RULES`.

  Returns:
    (2, height, width // 2 + 1, channels) for the grid after; float64 for a weight of float64,
    else float32.
  """
  matrix, xp = RULES[rule].filters, _namespace(weight)
  if before == after:
    return weight
  if not RULES[rule].on_kernel:
    # The official order of the axes, (rows, columns, channels, 2): the same bits as there.
    weight = xp.moveaxis(weight, 0, -1)
    weight = weight if xp is jnp else np.ascontiguousarray(weight)
    return xp.moveaxis(_resize(weight, (after[0], after[1] // 2 + 1), matrix), -1, 0)
  total = sum_type(weight.dtype)
  real, imaginary = weight
  spectrum = jax.lax.complex(real, imaginary) if xp is jnp else real + imaginary.astype(float) * 1j
  # Both transforms of a filter are orthonormal: the convolution needs no factor.
  kernel = xp.fft.irfft2(spectrum, s=before, axes=(0, 1))
  spectrum = xp.fft.rfft2(_resize(kernel, after, matrix), axes=(0, 1))
  return xp.stack([spectrum.real, spectrum.imag]).astype(total)


def _resize(table: Array, size: Grid, make_matrix: Matrix) -> Array:
  """Multiplies the first two axes with a matrix each, where their sizes change."""
  xp = _namespace(table)
  total = sum_type(table.dtype)
  options = {} if xp is np else {"precision": jax.lax.Precision.HIGHEST}
  for axis, (before, after) in enumerate(zip(table.shape[:2], size, strict=True)):
    if before != after:
      matrix = make_matrix(before, after)  # float64: so are NumPy's products
      matrix = matrix if xp is np else matrix.astype(total)
      table = xp.moveaxis(xp.tensordot(matrix, table, axes=(1, axis), **options), 0, axis)
  return table.astype(total)


def _namespace(array: Array) -> ModuleType:
  return jnp if isinstance(array, jax.Array) else np


def bicubic_of_centres(before: int, after: int) -> np.ndarray:
  """Keys' kernel, as PyTorch's with align_corners=True."""
  return _bicubic(_between_centres(before, after), before)


def bicubic_of_edges(before: int, after: int) -> np.ndarray:
  """Keys' kernel, as PyTorch's with align_corners=False."""
  return _bicubic(_between_edges(before, after), before)


def bilinear_of_centres(before: int, after: int) -> np.ndarray:
  """As PyTorch's with align_corners=True."""
  return _bilinear(_between_centres(before, after), before)


def bilinear_of_edges(before: int, after: int) -> np.ndarray:
  """As PyTorch's with align_corners=False."""
  return _bilinear(_between_edges(before, after), before)


def same_kernel(before: int, after: int) -> np.ndarray:
  """Keeps what is near the centre of a kernel, whose displacements count modulo its size.

  Displacements run from -(size // 2) upwards, so that the -2 of 4 stays -2 in a larger size.
  """
  matrix = np.zeros((after, before))
  size = min(before, after)
  kept = np.arange(size) - size // 2
  matrix[kept % after, kept % before] = 1
  return matrix


def same_response(before: int, after: int) -> np.ndarray:
  """Keeps the value of every frequency, in cycles per image; frequencies that are new get 0.

  The Nyquist frequency of an even size stands for both of its signs. In a larger size each of them
  gets one half of its value, half-way between what is known and 0; in a smaller size it gets the
  mean of both. What only has frequencies below both sizes' is filtered as before.
  """
  matrix = np.zeros((after, before))
  size = min(before, after)
  for frequency in range(-(size // 2), size // 2 + 1):
    at_nyquist = 2 * abs(frequency) == size
    matrix[frequency % after, frequency % before] += 0.5 if at_nyquist else 1
  transform = np.fft.fft(np.eye(before))  # symmetric
  return np.fft.ifft(matrix @ transform, axis=0).real


def _between_centres(before: int, after: int) -> np.ndarray:
  """Where every cell of the result is among the old ones; rounded as PyTorch rounds."""
  return np.arange(after).astype(np.float32) * np.float32((before - 1) / max(after - 1, 1))


def _between_edges(before: int, after: int) -> np.ndarray:
  return _fused(np.arange(after) + 0.5, np.float32(before / after), -0.5)


def _bicubic(position: np.ndarray, before: int) -> np.ndarray:
  """The weights of one axis; taps beyond the border are clamped.

  Positions and weights are rounded to float32 where PyTorch rounds them. Exact ones
  would change values of unit variance by up to 1.5e-5. Tables of float64 are resized by the
  same weights, as the official checkpoints are float32.
  """
  t, one, two = position - np.floor(position), np.float32(1), np.float32(2)
  return _place(
    position, before, {-1: _outer(t + one), 0: _inner(t), 1: _inner(one - t), 2: _outer(two - t)}
  )


def _bilinear(position: np.ndarray, before: int) -> np.ndarray:
  position = np.maximum(position, np.float32(0))  # PyTorch clamps it; the other border needs none
  t = position - np.floor(position)
  return _place(position, before, {0: np.float32(1) - t, 1: t})


def _place(position: np.ndarray, before: int, weights: dict[int, np.ndarray]) -> np.ndarray:
  """The matrix of interpolation with weights at these distances from the cell before."""
  index, first = np.arange(len(position)), np.floor(position).astype(int)
  matrix = np.zeros((len(position), before))
  for tap, weight in weights.items():
    np.add.at(matrix, (index, np.clip(first + tap, 0, before - 1)), weight)
  return matrix


def _inner(t: np.ndarray) -> np.ndarray:
  """Keys' kernel for 0 <= t <= 1."""
  return _fused(_fused(KEYS_A + 2, t, -(KEYS_A + 3)) * t, t, 1)


def _outer(t: np.ndarray) -> np.ndarray:
  """Keys' kernel for 1 <= t <= 2."""
  return _fused(_fused(_fused(KEYS_A, t, -5 * KEYS_A), t, 8 * KEYS_A), t, -4 * KEYS_A)


def _fused(a, b, c) -> np.ndarray:
  """a * b + c, rounded to float32 once, as by the fused instruction that PyTorch uses."""
  return (np.float64(a) * np.float64(b) + np.float64(c)).astype(np.float32)


RULES = {
  # The official fine-tuning at another resolution (main_gfnet.py, --finetune).
  "official": Rule(bicubic_of_edges, bicubic_of_centres, on_kernel=False),
  # The authors' for detection and segmentation; the position embedding as in PVT.
  "bilinear": Rule(bilinear_of_edges, bilinear_of_centres, on_kernel=False),
  # A token meets the neighbours that it met before.
  "kernel": Rule(bicubic_of_edges, same_kernel, on_kernel=True),
  # The filter does to an image what it did before, if the image is only sampled otherwise.
  "spectrum": Rule(bicubic_of_edges, same_response, on_kernel=True),
}
