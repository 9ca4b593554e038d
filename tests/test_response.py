"""The kernel and the frequency response of a global filter, in double precision and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import compiled, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from gfnet_jax.models.functional import update
from gfnet_jax.models.mixers import GlobalFilter
from gfnet_jax.models.stage import BlockStack
from gfnet_jax.models.variants import create_model

GRIDS = [(4, 4), (5, 6), (6, 5), (7, 7)]


def make_filter(weight: np.ndarray, width: int) -> GlobalFilter:
  """The filter of a half spectrum (height, width // 2 + 1, channels), complex."""
  height, _, channels = weight.shape
  layer = random_model(lambda: GlobalFilter(channels, height, width, rngs=nnx.Rngs(0)))
  update(layer, {"complex_weight": jnp.asarray(np.stack([weight.real, weight.imag]))})
  return layer


def random_weight(grid, channels=3, seed=0):
  parts = np.random.default_rng(seed).normal(size=(2, grid[0], grid[1] // 2 + 1, channels))
  return parts[0] + 1j * parts[1]


def frequencies(grid):
  """(rows, 1) and (1, columns of the half spectrum), in cycles per token."""
  return np.fft.fftfreq(grid[0])[:, None], np.arange(grid[1] // 2 + 1)[None] / grid[1]


def convolve(tokens, kernel):
  """Circularly, per channel, by the definition: (height, width, channels) each."""
  result = np.zeros_like(tokens)
  for y, x in np.ndindex(kernel.shape[:2]):
    result += kernel[y, x] * np.roll(tokens, (y, x), (0, 1))
  return result


def official(tokens, weight):
  """What the official layer computes of (height, width, channels), by NumPy in float64."""
  spectrum = np.fft.rfft2(tokens, axes=(0, 1), norm="ortho") * weight
  return np.fft.irfft2(spectrum, s=tokens.shape[:2], axes=(0, 1), norm="ortho")


def check_in_double_precision(grid, seed):
  weight = random_weight(grid, seed=seed)
  with jax.enable_x64(True):
    layer = make_filter(weight, grid[1])
    kernel, response = (np.asarray(compiled(layer, name)()) for name in ("kernel", "response"))
  assert (kernel.dtype, response.dtype) == (np.float64, np.complex128)
  # By the definitions: what an impulse becomes, and what a sum of waves is multiplied by.
  impulse = np.zeros((*grid, 3))
  impulse[0, 0] = 1
  np.testing.assert_allclose(kernel, official(impulse, weight), rtol=0, atol=1e-12)
  tokens = np.random.default_rng(seed + 1).normal(size=impulse.shape)
  filtered = official(tokens, weight)
  np.testing.assert_allclose(convolve(tokens, kernel), filtered, rtol=0, atol=1e-12)
  spectra = [np.fft.fft2(x, axes=(0, 1)) for x in (tokens, filtered)]
  np.testing.assert_allclose(response * spectra[0], spectra[1], rtol=0, atol=1e-11)
  # And by the rule: the Hermitian part in the columns that are their own mirror images.
  for column in range(weight.shape[1]):
    mirrored = np.conj(weight[-np.arange(grid[0]), column])
    alone = column == 0 or 2 * column == grid[1]
    expected = (weight[:, column] + mirrored) / 2 if alone else weight[:, column]
    np.testing.assert_allclose(response[:, column], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
      response[:, -column], np.conj(expected[-np.arange(grid[0])]), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("grid", GRIDS)
def test_random_filters_in_double_precision(grid):
  check_in_double_precision(grid, seed=0)


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**16))
def test_filters_of_any_size_in_double_precision(height, width, seed):
  check_in_double_precision((height, width), seed)


@pytest.mark.parametrize("grid", [(5, 6), (7, 7)])
def test_a_call_is_the_convolution_with_the_kernel(grid):
  weight = random_weight(grid)
  layer = make_filter(weight.astype(np.complex64), grid[1])
  tokens = np.random.default_rng(1).normal(size=(*grid, 3)).astype(np.float32)
  kernel = np.asarray(compiled(layer, "kernel")())
  np.testing.assert_allclose(compiled(layer)(tokens[None])[0], convolve(tokens, kernel), atol=2e-5)


@pytest.mark.parametrize("grid", [(4, 6), (5, 7)])
def test_the_identity_is_an_impulse(grid):
  layer = make_filter(np.ones((grid[0], grid[1] // 2 + 1, 2), np.complex64), grid[1])
  expected = np.zeros((*grid, 2))
  expected[0, 0] = 1
  np.testing.assert_allclose(compiled(layer, "kernel")(), expected, atol=1e-7)
  np.testing.assert_allclose(compiled(layer, "response")(), np.ones((*grid, 2)), atol=1e-6)


@pytest.mark.parametrize("grid", [(6, 7), (7, 5)])
@pytest.mark.parametrize("move", [(2, 3), (-1, 0)])
def test_a_shift_moves_an_image_exactly(grid, move):
  u, v = frequencies(grid)
  weight = np.exp(-2j * np.pi * (u * move[0] + v * move[1]))[..., None]
  layer = make_filter(weight.astype(np.complex64), grid[1])
  expected = np.zeros(grid)
  expected[move] = 1
  np.testing.assert_allclose(compiled(layer, "kernel")()[..., 0], expected, atol=1e-6)
  np.testing.assert_allclose(np.abs(compiled(layer, "response")()), 1, atol=1e-6)
  image = np.random.default_rng(0).integers(0, 256, (*grid, 1)).astype(np.float32)
  moved = np.asarray(compiled(layer)(image[None]))[0]
  assert np.abs(moved - moved.round()).max() < 1e-3
  np.testing.assert_array_equal(moved.round(), np.roll(image, move, (0, 1)))


@pytest.mark.parametrize("grid", [(8, 8), (9, 6)])
def test_a_low_pass_is_a_disc_and_keeps_the_mean(grid):
  u, v = frequencies(grid)
  weight = (np.hypot(u, v) <= 0.25).astype(np.complex64)[..., None]
  layer = make_filter(weight, grid[1])
  radius = np.hypot(np.fft.fftfreq(grid[0])[:, None], np.fft.fftfreq(grid[1])[None])
  np.testing.assert_allclose(compiled(layer, "response")()[..., 0], radius <= 0.25, atol=1e-6)
  assert float(compiled(layer, "kernel")().sum()) == pytest.approx(1, abs=1e-6)
  slow = np.cos(2 * np.pi * np.arange(grid[1]) / grid[1]) * np.ones((grid[0], 1))
  fast = (-1.0) ** np.arange(grid[1]) * np.ones((grid[0], 1))
  waves = np.stack([slow, fast])[..., None].astype(np.float32)
  filtered = compiled(layer)(waves)
  np.testing.assert_allclose(filtered[0], waves[0], atol=1e-6)
  np.testing.assert_allclose(filtered[1], 0, atol=1e-6)


def test_stacked_blocks_show_the_same_kernels():
  options = dict(image_size=32, num_classes=2, embed_dim=4, depth=2)
  model = random_model(lambda: create_model("gfnet-ti", **options))
  for block, stacked in zip(model.blocks, BlockStack(list(model.blocks)), strict=True):
    np.testing.assert_array_equal(stacked.filter.kernel(), block.filter.kernel())
