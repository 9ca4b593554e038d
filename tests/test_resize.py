"""The two bicubics against golden data and against PyTorch."""

import numpy as np
import pytest

from gfnet_jax.models.resize import resize_bicubic

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
