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
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.lax import PrecisionLike

from gfnet_jax.errors import UserError
from gfnet_jax.models.fused_layout import (
  LANES,
  SUBLANES,
  Layout,
  as_columns,
  as_rows,
  choose_layout,
  count_passes,
  round_up,
  transform_matrices,
)

UNROLLED_ROWS = 8  # of independent products, so that one need not wait for another
VMEM_BYTES = 100 * 2**20  # of the 128 MiB of a TPU v5e, whose default limit is 16


def forward(
  tokens: jax.Array, weight: jax.Array, *, precision: PrecisionLike, interpret: bool
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

  Raises:
    UserError: if the grid is too large; 96 x 96 is not.
  """
  layout = choose_layout(tokens.shape)
  (filtered,) = _call(
    functools.partial(_forward_kernel, layout),
    layout,
    [as_rows(tokens, layout)],
    as_columns(weight, layout),
    transform_matrices(layout, count_passes(precision, tokens), count_passes(precision)),
    interpret=interpret,
  )
  return filtered.reshape(tokens.shape)


def pull_back(
  tokens: jax.Array,
  weight: jax.Array,
  gradient: jax.Array,
  *,
  precision: PrecisionLike,
  interpret: bool,
) -> tuple[jax.Array, jax.Array]:
  """The gradients of `forward`'s arguments, given its result's.

  As in `fourier.py`: the filter with the conjugate weight, and the product of the spectra, where
  a column with a mirror image counts twice. The spectrum of the tokens is computed again: kept,
  it would be one more array of their size to write and to read.

  Args:
    tokens, weight, precision, interpret: those of `forward`.
    gradient: (batch, height, width, channels), float32 or bfloat16.

  Returns:
    (gradient of the tokens, gradient of the weight): float32, the latter summed over the batch.

  Raises:
    UserError: if the grid is too large; 96 x 96 is not.
  """
  layout = choose_layout(tokens.shape)
  tokens_gradient, columns = _call(
    functools.partial(_pull_back_kernel, layout),
    layout,
    [as_rows(tokens, layout), as_rows(gradient, layout)],
    as_columns(weight, layout),
    transform_matrices(layout, count_passes(precision, tokens, gradient), count_passes(precision)),
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
    sums = jnp.zeros_like(real), jnp.zeros_like(real)
    for image in range(layout.images):
      place = layout.column(image, column)
      a, b = _split(_product(height_in, token_spectra[place]))
      c, d = _split(_product(height_in, spectra[place]))
      sums = sums[0] + a * c + b * d, sums[1] + a * d - b * c
      product = jnp.concatenate([c * real + d * imaginary, d * real - c * imaginary])
      spectra[place] = _product(height_out, product)
    weight_gradient[column] += jnp.stack(sums)

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
  layout: Layout,
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
    matrices: of `transform_matrices`.
    interpret: whether to run without a compiler.

  Returns:
    Filtered rows, float32, and after two arrays of rows the gradient of the weight as well.
  """
  steps, tokens, channels = rows[0].shape
  lanes = min(channels, LANES)
  spectra = (layout.images * layout.height * 2 * layout.pitch, lanes)
  _check_size(layout, rows, weight, spectra)
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
    scratch_shapes=[pltpu.VMEM(spectra, jnp.float32)] * len(rows),
    compiler_params=pltpu.CompilerParams(
      # The steps of a block of channels add to the same gradient of the weight.
      dimension_semantics=("parallel", "arbitrary"),
      vmem_limit_bytes=VMEM_BYTES,
    ),
    cost_estimate=_estimate_cost(layout, rows, weight, matrices),
    interpret=interpret,
    name="fused_filter" if len(rows) == 1 else "fused_filter_gradient",
  )(*rows, weight, *matrices)


def _check_size(layout, rows, weight, spectra):
  """Refuses grids of which not even one image fits into VMEM, a block of channels of it."""
  of_rows, of_weight, of_spectra = (
    math.prod(shape[:-1]) for shape in (rows[0].shape[1:], weight.shape, spectra)
  )
  # Blocks are there twice: one is copied while the other is worked on.
  positions = len(rows) * (2 * of_rows + 2 * of_weight + of_spectra) + 2 * of_rows
  needed = positions * LANES * 4
  if needed > VMEM_BYTES:
    raise UserError(
      f"the fused filter got a grid of {layout.height} x {layout.width} tokens, of which a step "
      f"needs {needed >> 20} MiB of a TPU's VMEM, expected at most {VMEM_BYTES >> 20}; "
      "choose another backend"
    )


def _estimate_cost(layout, rows, weight, matrices) -> pl.CostEstimate:
  """What a kernel moves, counted in whole tiles, and multiplies, counted without padded lanes."""
  steps, tokens, channels = rows[0].shape
  width_in, height_in, height_out, width_out = (matrix.size for matrix in matrices)
  of_rows = layout.height * (len(rows) * width_in + width_out)
  of_columns = layout.columns * (len(rows) * height_in + height_out)
  lanes = round_up(channels, LANES)
  values = steps * round_up(tokens, SUBLANES) * lanes
  moved = values * (4 + sum(x.dtype.itemsize for x in rows))
  moved += len(rows) * 4 * weight.size // channels * lanes
  return pl.CostEstimate(
    flops=2 * steps * layout.images * channels * (of_rows + of_columns),
    bytes_accessed=moved + sum(matrix.nbytes for matrix in matrices),
    transcendentals=0,
  )
