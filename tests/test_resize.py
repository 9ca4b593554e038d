"""The rules of resizing: the interpolations against PyTorch, the others by what they keep."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfnet_jax.models.resize import RULES, resize_bicubic, resize_filter, resize_positions

SIZES = [
  ((14, 14), (24, 24)),
  ((56, 29), (96, 49)),
  ((28, 15), (48, 25)),
  ((14, 8), (24, 13)),
  ((7, 4), (12, 7)),
  ((24, 13), (14, 8)),
  ((56, 56), (56, 72)),
  ((3, 2), (1, 9)),
]


def random_table(size, channels=3):
  return np.random.default_rng(0).standard_normal((*size, channels)).astype(np.float32)


@pytest.mark.parametrize("align_corners", [False, True])
def test_an_unchanged_size_changes_nothing(align_corners):
  table = random_table((14, 8))
  np.testing.assert_array_equal(
    resize_bicubic(table, (14, 8), align_corners=align_corners), table, strict=True
  )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_equals_pytorch(before, after, align_corners):
  torch = pytest.importorskip("torch")
  table = random_table(before)
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(table).permute(2, 0, 1)[None],
    size=after,
    mode="bicubic",
    align_corners=align_corners,
  )
  resized = resize_bicubic(table, after, align_corners=align_corners)
  np.testing.assert_allclose(resized, expected[0].permute(1, 2, 0).numpy(), rtol=0, atol=1e-6)


def test_the_kernel_is_keys_with_a_of_three_quarters():
  impulse = np.zeros((9, 1), np.float32)
  impulse[4] = 1
  response = resize_bicubic(impulse, (17, 1), align_corners=True)[:, 0]
  # At half distances: (a - 0) / 8 outside, (4 - a) / 8 inside, computed by hand.
  np.testing.assert_allclose(response[4:13], [0, -0.09375, 0, 0.59375, 1, 0.59375, 0, -0.09375, 0])


sides = st.integers(1, 9)
grids = st.tuples(sides, sides)


def random_filter(grid, seed, channels=2):
  """In float64, with imaginary parts where they have no effect, too."""
  shape = (2, grid[0], grid[1] // 2 + 1, channels)
  return np.random.default_rng(seed).standard_normal(shape)


def act(weight, tokens):
  """The global filter by NumPy's transforms, in float64: tokens (height, width, channels)."""
  spectrum = np.fft.rfft2(tokens, axes=(0, 1), norm="ortho") * (weight[0] + 1j * weight[1])
  return np.fft.irfft2(spectrum, s=tokens.shape[:2], axes=(0, 1), norm="ortho")


def impulse_response(weight, grid):
  """By displacement: {(rows down, columns right): (channels,)}."""
  impulse = np.zeros((*grid, weight.shape[-1]))
  impulse[0, 0] = 1
  rows, columns = (np.arange(size) - size // 2 for size in grid)
  response = act(weight, impulse)
  return {(y, x): response[y, x] for y in rows for x in columns}


@given(grids, grids, st.integers(0, 9))
def test_the_rule_kernel_keeps_the_impulse_response(before, after, seed):
  weight = random_filter(before, seed)
  old = impulse_response(weight, before)
  new = impulse_response(resize_filter(weight, before, after, "kernel"), after)
  for place, value in new.items():
    np.testing.assert_allclose(value, old.get(place, 0 * value), rtol=0, atol=1e-12)


def sample(coefficients, grid):
  """Samples a band-limited image: (2 n + 1, 2 m + 1, channels) of its frequencies from -n, -m."""
  rows, columns = (
    np.exp(2j * np.pi * np.outer(np.arange(size), np.arange(count) - count // 2) / size)
    for size, count in zip(grid, coefficients.shape[:2], strict=True)
  )
  return np.einsum("yk,xl,klc->yxc", rows, columns, coefficients)


@given(grids, grids, st.integers(0, 9))
def test_the_rule_spectrum_acts_equally_on_band_limited_images(before, after, seed):
  """Of an image, its samples on both grids; what comes out are samples of one image again."""
  random = np.random.default_rng(seed)
  counts = [(min(pair) - 1) // 2 * 2 + 1 for pair in zip(before, after, strict=True)]
  image = random.standard_normal((*counts, 2)) + 1j * random.standard_normal((*counts, 2))
  image = (image + image[::-1, ::-1].conj()) / 2  # real
  weight = random_filter(before, seed)
  old = act(weight, sample(image, before).real)
  new = act(resize_filter(weight, before, after, "spectrum"), sample(image, after).real)
  waves = [np.arange(count) - count // 2 for count in counts]
  filtered = np.fft.fft2(old, axes=(0, 1), norm="forward")[np.ix_(*waves)]
  np.testing.assert_allclose(new, sample(filtered, after), rtol=0, atol=1e-12)


def test_the_nyquist_frequency_is_halved_and_mirrored():
  """By hand: 4 x 4 has Nyquist frequencies at 2, which 8 x 8 has at 2 and at -2."""
  weight = np.zeros((2, 4, 3, 1))
  weight[0, :, :, 0] = [[16, 8, 4], [8, 4, 2], [4, 2, 12], [8, 4, 2]]
  expected = np.zeros((8, 5))
  expected[[0, 1, 2, 6, 7], :3] = [[16, 8, 2], [8, 4, 1], [2, 1, 3], [2, 1, 3], [8, 4, 1]]
  real, imaginary = resize_filter(weight, (4, 4), (8, 8), "spectrum")[..., 0]
  np.testing.assert_allclose(real, expected, atol=1e-12)
  np.testing.assert_allclose(imaginary, 0, atol=1e-12)


def test_a_smaller_size_takes_the_mean_of_both_signs_at_its_nyquist_frequency():
  """By hand, one row: of 5 + 2i at 2 and its conjugate at -2, the real part remains."""
  weight = np.array([[[9.0, 7, 5, 3, 1]], [[0.0, 1, 2, 3, 0]]])[..., None]
  smaller = resize_filter(weight, (1, 8), (1, 4), "spectrum")
  np.testing.assert_allclose(smaller[:, 0, :, 0], [[9, 7, 5], [0, 1, 0]], atol=1e-12)


@pytest.mark.parametrize("after", [(5, 8), (3, 4), (8, 3), (1, 1)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_bilinear_rule_equals_pytorch(after, align_corners):
  torch = pytest.importorskip("torch")
  grid = (6, 5) if align_corners else (6, 3)
  table = random_table((6, 3), 4)
  if align_corners:  # of filters
    size, weight = (after[0], after[1] // 2 + 1), np.moveaxis(table, -1, 0)[..., None]
    resized = np.concatenate([resize_filter(w, grid, after, "bilinear")[..., 0]
                              for w in (weight[:2], weight[2:])])  # fmt: skip
  else:
    size, resized = after, np.moveaxis(resize_positions(table, after, "bilinear"), -1, 0)
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(table).permute(2, 0, 1)[None],
    size=size,
    mode="bilinear",
    align_corners=align_corners,
  )
  np.testing.assert_allclose(resized, expected[0].numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_jax_computes_the_same_as_numpy(rule):
  weight, table = random_filter((6, 7), 0).astype(np.float32), random_table((6, 7))
  for array, resize in [
    (weight, lambda x: resize_filter(x, (6, 7), (4, 10), rule)),
    (table, lambda x: resize_positions(x, (4, 10), rule)),
  ]:
    expected, found = resize(array), resize(jnp.array(array))
    assert isinstance(expected, np.ndarray)
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("grid", [(6, 7), (5, 4)])
def test_an_unchanged_grid_changes_no_filter(rule, grid):
  weight = random_filter(grid, 0)
  np.testing.assert_array_equal(resize_filter(weight, grid, grid, rule), weight)
