"""The global filter as one Pallas kernel for TPUs: what is read is read once, and nothing but
the result is written.

A kernel holds whole images of up to 128 channels in VMEM. It transforms them along the width,
row by row, into a scratch buffer; then it takes one column of frequencies after the other
through the transform along the height, the product with the weight and the inverse transform;
and at last it transforms the rows back. Every transform is a product of a small matrix with
(positions, channels), float32 made of bfloat16 products: the factors are split into a high and
a low half, and `high * high + low * high + high * low` is one product of matrices three times
as wide, which fills the 128 x 128 units better than three would.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES, SUBLANES = 128, 8  # of a tile in VMEM
MOST_IMAGES, MOST_TOKENS = 16, 6272  # per step; more images keep the matrix units busier
UNROLLED_ROWS = 8  # of independent products, so that one need not wait for another
VMEM_BYTES = 100 * 2**20  # of the 128 MiB of a TPU v5e, whose default limit is 16


class _Layout(NamedTuple):
  """How the images of one step lie in VMEM.

  Attributes:
    images: per step; divides the batch.
    height, width: of the grid of tokens.
  """

  images: int
  height: int
  width: int

  @property
  def columns(self) -> int:
    """Columns of the half spectrum."""
    return self.width // 2 + 1

  @property
  def pitch(self) -> int:
    """Rows of the scratch buffer per part of an image row's spectrum.

    A column is read with this stride, which is odd: its rows then lie in different banks.
    """
    return self.columns | 1

  @property
  def padded_height(self) -> int:
    """Rows of a column's real parts, and of its imaginary parts: whole tiles."""
    return _round_up(self.height, SUBLANES)

  def tokens(self, row: jax.Array) -> pl.Slice:
    """Where a row of tokens is, counted over all images."""
    return pl.ds(row * self.width, self.width)

  def spectrum(self, row: jax.Array) -> pl.Slice:
    """Where the spectrum of a row of tokens is in the scratch buffer: real parts first."""
    return pl.ds(row * 2 * self.pitch, 2 * self.pitch)

  def column(self, image: int, column: jax.Array) -> pl.Slice:
    """Where a column of an image is there: (height, part)."""
    start = image * self.height * 2 * self.pitch + column
    return pl.ds(start, 2 * self.height, stride=self.pitch)


def forward(
  tokens: jax.Array, weight: jax.Array, *, precision: jax.lax.Precision, interpret: bool
) -> jax.Array:
  """Filters grids of tokens, as `fourier.global_filter` does.

  Args:
    tokens: (batch, height, width, channels), float32 or bfloat16.
    weight: (2, height, width // 2 + 1, channels), float32: real parts, then imaginary parts.
    precision: DEFAULT takes one bfloat16 pass (relative errors of some 5e-3), HIGH and HIGHEST
      take three (below 2e-5).
    interpret: whether to run the kernel's operations one by one, on any platform.

  Returns:
    (batch, height, width, channels), float32.
  """
  layout = _choose_layout(tokens.shape)
  (filtered,) = _call(
    functools.partial(_forward_kernel, layout),
    layout,
    [_as_rows(tokens, layout)],
    _as_columns(weight, layout),
    _matrices(layout, _passes(precision, tokens), _passes(precision)),
    interpret=interpret,
  )
  return filtered.reshape(tokens.shape)


def pull_back(
  tokens: jax.Array,
  weight: jax.Array,
  gradient: jax.Array,
  *,
  precision: jax.lax.Precision,
  interpret: bool,
) -> tuple[jax.Array, jax.Array]:
  """The gradients of `forward`'s arguments, given its result's.

  As in `fourier.py`: the filter with the conjugate weight, and the product of the spectra, where
  a column with a mirror image counts twice. The spectrum of the tokens is computed again, since
  reading them costs half as much as reading a spectrum that was kept.

  Args:
    tokens, weight, precision, interpret: those of `forward`.
    gradient: (batch, height, width, channels), float32 or bfloat16.

  Returns:
    (gradient of the tokens, gradient of the weight): float32, the latter summed over the batch.
  """
  layout = _choose_layout(tokens.shape)
  tokens_gradient, columns = _call(
    functools.partial(_pull_back_kernel, layout),
    layout,
    [_as_rows(tokens, layout), _as_rows(gradient, layout)],
    _as_columns(weight, layout),
    _matrices(layout, _passes(precision, tokens, gradient), _passes(precision)),
    interpret=interpret,
  )
  numbers = np.arange(layout.columns)
  copies = np.where((numbers == 0) | (2 * numbers == layout.width), 1, 2).astype(np.float32)
  weight_gradient = columns[:, :, : layout.height].transpose(1, 2, 0, 3)
  return tokens_gradient.reshape(tokens.shape), weight_gradient * copies[None, None, :, None]


def _forward_kernel(layout, tokens, weight, width_in, height_in, height_out, width_out, *refs):
  filtered, spectra = refs
  _transform_rows(layout, width_in, tokens, spectra, spare=filtered)

  def filter_column(column, _):
    real, imaginary = weight[column]
    for image in range(layout.images):
      place = layout.column(image, column)
      a, b = _split(_product(height_in, spectra[place]))
      product = jnp.concatenate([a * real - b * imaginary, a * imaginary + b * real])
      spectra[place] = _product(height_out, product)

  jax.lax.fori_loop(0, layout.columns, filter_column, None)
  _invert_rows(layout, width_out, spectra, filtered)


def _pull_back_kernel(layout, tokens, gradient, weight, *refs):
  width_in, height_in, height_out, width_out = refs[:4]
  tokens_gradient, weight_gradient, token_spectra, spectra = refs[4:]
  _transform_rows(layout, width_in, tokens, token_spectra, spare=tokens_gradient)
  _transform_rows(layout, width_in, gradient, spectra, spare=tokens_gradient)

  @pl.when(pl.program_id(1) == 0)
  def _():
    weight_gradient[...] = jnp.zeros_like(weight_gradient)

  def filter_column(column, _):
    real, imaginary = weight[column]
    for image in range(layout.images):
      place = layout.column(image, column)
      a, b = _split(_product(height_in, token_spectra[place]))
      c, d = _split(_product(height_in, spectra[place]))
      weight_gradient[column, 0] += a * c + b * d
      weight_gradient[column, 1] += a * d - b * c
      product = jnp.concatenate([c * real + d * imaginary, d * real - c * imaginary])
      spectra[place] = _product(height_out, product)

  jax.lax.fori_loop(0, layout.columns, filter_column, None)
  _invert_rows(layout, width_out, spectra, tokens_gradient)


def _transform_rows(layout, matrix, tokens, spectra, spare):
  """Writes the spectra of all rows of tokens; float32 copies of others go into `spare`."""
  if tokens.dtype != jnp.float32:  # rows begin within tiles, which only float32 can be read from
    spare[...] = tokens[...].astype(jnp.float32)
    tokens = spare

  def transform(row, _):
    spectra[layout.spectrum(row)] = _product(matrix, tokens[layout.tokens(row)])

  jax.lax.fori_loop(0, layout.images * layout.height, transform, None, unroll=UNROLLED_ROWS)


def _invert_rows(layout, matrix, spectra, tokens):
  def invert(row, _):
    tokens[layout.tokens(row)] = _product(matrix, spectra[layout.spectrum(row)])

  jax.lax.fori_loop(0, layout.images * layout.height, invert, None, unroll=UNROLLED_ROWS)


def _product(matrix, x):
  """Multiplies a matrix (m, n), widened by `_widen` to (m, passes * n), with x (n, channels)."""
  matrix = matrix[...]
  high = x.astype(jnp.bfloat16).astype(jnp.float32)
  # One below the other while they are float32, whose tiles are smaller.
  factors = jnp.concatenate([high, high, x - high][: matrix.shape[1] // x.shape[0]])
  return jnp.dot(matrix, factors.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def _split(spectrum):
  """The real and the imaginary parts of a column."""
  height = spectrum.shape[0] // 2
  return spectrum[:height], spectrum[height:]


def _call(
  kernel,
  layout: _Layout,
  rows: Sequence[jax.Array],
  weight: jax.Array,
  matrices: Sequence[np.ndarray],
  *,
  interpret: bool,
):
  """Runs a kernel of one array of tokens (forward) or of two (the gradient).

  Args:
    kernel: called with references to rows, weight, matrices, results and scratch buffers.
    layout: of a step.
    rows: one or two arrays (steps, tokens of a step, channels).
    weight: (columns, 2, padded height, channels).
    matrices: of `_matrices`.
    interpret: whether to run without a compiler.

  Returns:
    Filtered rows, float32, and after two arrays of rows the gradient of the weight as well.
  """
  steps, tokens, channels = rows[0].shape
  lanes = min(channels, LANES)
  row_spec = pl.BlockSpec((None, tokens, lanes), lambda block, step: (step, 0, block))
  weight_spec = pl.BlockSpec((*weight.shape[:3], lanes), lambda block, step: (0, 0, 0, block))
  results, result_specs = [rows[0], weight], [row_spec, weight_spec]
  varying = jax.typeof(rows[0]).manual_axis_type
  return pl.pallas_call(
    kernel,
    out_shape=[
      jax.ShapeDtypeStruct(x.shape, jnp.float32, manual_axis_type=varying)
      for x in results[: len(rows)]
    ],
    grid=(pl.cdiv(channels, lanes), steps),
    in_specs=[
      *[row_spec] * len(rows),
      weight_spec,
      *[pl.BlockSpec(matrix.shape, lambda block, step: (0, 0)) for matrix in matrices],
    ],
    out_specs=result_specs[: len(rows)],
    scratch_shapes=[
      pltpu.VMEM((layout.images * layout.height * 2 * layout.pitch, lanes), jnp.float32)
      for _ in rows
    ],
    compiler_params=pltpu.CompilerParams(
      # The steps of a block of channels add to the same gradient of the weight.
      dimension_semantics=("parallel", "arbitrary"),
      vmem_limit_bytes=VMEM_BYTES,
    ),
    cost_estimate=_estimate_cost(layout, rows, weight, matrices),
    interpret=interpret,
    name="fused_filter" if len(rows) == 1 else "fused_filter_gradient",
  )(*rows, weight, *matrices)


def _estimate_cost(layout, rows, weight, matrices) -> pl.CostEstimate:
  """What a kernel moves, counted in whole tiles, and multiplies, counted without padded lanes."""
  steps, tokens, channels = rows[0].shape
  width_in, height_in, height_out, width_out = (matrix.size for matrix in matrices)
  of_rows = layout.height * (len(rows) * width_in + width_out)
  of_columns = layout.columns * (len(rows) * height_in + height_out)
  lanes = _round_up(channels, LANES)
  values = steps * _round_up(tokens, SUBLANES) * lanes
  moved = values * (4 + sum(x.dtype.itemsize for x in rows))
  moved += len(rows) * 4 * weight.size // channels * lanes
  return pl.CostEstimate(
    flops=2 * steps * layout.images * channels * (of_rows + of_columns),
    bytes_accessed=moved + sum(matrix.nbytes for matrix in matrices),
    transcendentals=0,
  )


def _choose_layout(shape: tuple[int, int, int, int]) -> _Layout:
  batch, height, width, _ = shape
  most = max(1, min(MOST_IMAGES, MOST_TOKENS // (height * width)))
  images = max(n for n in range(1, most + 1) if batch % n == 0)
  return _Layout(images, height, width)


def _as_rows(tokens: jax.Array, layout: _Layout) -> jax.Array:
  """(steps, tokens of a step, channels): without padding, mostly, unlike single images."""
  _, height, width, channels = tokens.shape
  return tokens.reshape(-1, layout.images * height * width, channels)


def _as_columns(weight: jax.Array, layout: _Layout) -> jax.Array:
  """(columns, 2, padded height, channels), as the kernels take it."""
  padding = layout.padded_height - layout.height
  return jnp.pad(weight.transpose(2, 0, 1, 3), ((0, 0), (0, 0), (0, padding), (0, 0)))


def _passes(precision: jax.lax.Precision, *factors: jax.Array) -> int:
  """How many products of bfloat16 halves make one product with these factors."""
  if precision == jax.lax.Precision.DEFAULT:
    return 1
  # Bfloat16 has no low half.
  return 2 if factors and all(x.dtype == jnp.bfloat16 for x in factors) else 3


@functools.cache
def _matrices(layout: _Layout, token_passes: int, passes: int) -> tuple[np.ndarray, ...]:
  """The orthonormal transforms along width and height, then their inverses, height first."""
  columns, pitch, height, padded = (
    layout.columns,
    layout.pitch,
    layout.height,
    layout.padded_height,
  )
  width_in = np.zeros((2, pitch, layout.width))  # (part, column) from (width,)
  spectrum = np.fft.rfft(np.eye(layout.width), norm="ortho").T
  width_in[:, :columns] = spectrum.real, spectrum.imag
  width_out = np.zeros((layout.width, 2, pitch))  # (width,) from (part, column)
  for part, unit in enumerate((1, 1j)):
    inverse = np.fft.irfft(unit * np.eye(columns), layout.width, norm="ortho")
    width_out[:, part, :columns] = inverse.T
  height_in = np.zeros((2, padded, height, 2))  # (part, height) from (height, part)
  spectrum = np.fft.fft(np.eye(height), norm="ortho")
  height_in[0, :height] = np.stack([spectrum.real, -spectrum.imag], -1)
  height_in[1, :height] = np.stack([spectrum.imag, spectrum.real], -1)
  height_in = height_in.reshape(2 * padded, 2 * height)
  return (
    _widen(width_in.reshape(2 * pitch, -1), token_passes),
    _widen(height_in, passes),
    _widen(height_in.T, passes),  # unitary: the transpose is the inverse
    _widen(width_out.reshape(-1, 2 * pitch), passes),
  )


def _widen(matrix: np.ndarray, passes: int) -> np.ndarray:
  """The high half of a matrix, its low half and the high half again: as many as passes."""
  high = matrix.astype(jnp.bfloat16)
  low = (matrix - high.astype(np.float64)).astype(jnp.bfloat16)
  return np.concatenate([high, low, high][:passes], axis=1)


def _round_up(number: int, multiple: int) -> int:
  return -(-number // multiple) * multiple
