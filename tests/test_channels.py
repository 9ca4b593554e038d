"""The first convolution carried to images of another number of channels."""

import math

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from gfnet_jax.errors import UserError
from gfnet_jax.weights.channels import adapt_channels

KERNEL = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)


def test_one_channel_is_the_sum_of_the_three():
  adapted = adapt_channels(KERNEL, 1)
  assert adapted.shape == (2, 1, 2, 2)
  np.testing.assert_array_equal(adapted[0, 0], [[12, 15], [18, 21]])


def test_four_channels_repeat_the_first_and_keep_the_scale():
  adapted = adapt_channels(KERNEL, 4)
  np.testing.assert_array_equal(adapted[:, :3], KERNEL * 0.75)
  np.testing.assert_array_equal(adapted[:, 3], KERNEL[:, 0] * 0.75)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_a_kernel_that_fits_stays_as_it_is(dtype):
  kernel = KERNEL.astype(dtype)
  assert adapt_channels(kernel, 3) is kernel
  assert adapt_channels(kernel[:, :2], 2).base is kernel
  assert adapt_channels(kernel, 5).dtype == np.float32


@hypothesis.given(st.integers(1, 16), st.integers(0, 2**32 - 1))
def test_it_is_the_rule_of_timm(in_dim, seed):
  torch = pytest.importorskip("torch")
  kernel = np.random.default_rng(seed).standard_normal((4, 3, 2, 2), np.float32)
  weight = torch.from_numpy(kernel)  # timm/models/_manipulate.py: adapt_input_conv
  if in_dim == 1:
    weight = weight.sum(dim=1, keepdim=True)
  elif in_dim != 3:
    weight = weight.repeat(1, math.ceil(in_dim / 3), 1, 1)[:, :in_dim]
    weight = weight * (3 / float(in_dim))
  np.testing.assert_allclose(adapt_channels(kernel, in_dim), weight.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("in_dim", [1, 6, 9])
def test_an_image_repeated_over_the_channels_gives_the_same_tokens(in_dim):
  grey = np.random.default_rng(0).standard_normal((2, 2))
  expected = (KERNEL * grey).sum((1, 2, 3))
  actual = (adapt_channels(KERNEL, in_dim) * grey).sum((1, 2, 3))
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("shape", "in_dim", "match"),
  [
    ((2, 4, 2, 2), 3, r"shape \(2, 4, 2, 2\), expected \(channels, 3, patch, patch\)"),
    ((2, 1, 2, 2), 4, r"shape \(2, 1, 2, 2\)"),
    ((2, 3), 1, r"shape \(2, 3\)"),
    ((), 1, r"shape \(\)"),
    ((2, 3, 2, 2), 0, "0 channels, expected 1 to 256"),
    ((2, 3, 2, 2), 10**9, "1000000000 channels, expected 1 to 256"),
  ],
)
def test_other_kernels_and_absurd_numbers_are_refused(shape, in_dim, match):
  with pytest.raises(UserError, match=match):
    adapt_channels(np.zeros(shape, np.float32), in_dim)
