"""Random erasing: the geometry on the host, the noise on the device."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gfnet_jax.data.erasing_boxes import draw_erasing_boxes
from gfnet_jax.data.on_device.erasing import erase
from gfnet_jax.errors import UserError


@pytest.mark.parity
def test_golden_box():
  boxes = draw_erasing_boxes((224, 224), random.Random(0), probability=1.0)
  np.testing.assert_array_equal(boxes, [[33, 65, 103, 125]])


def test_rate_and_counts():
  rng = random.Random(0)
  boxes = np.stack(
    [draw_erasing_boxes((64, 48), rng, probability=0.25, max_count=3) for _ in range(20_000)]
  )
  counts = (boxes[..., 2] > 0).sum(axis=1)
  assert scipy.stats.binomtest(int((counts > 0).sum()), 20_000, 0.25).pvalue > 1e-3
  assert scipy.stats.chisquare(np.bincount(counts)[1:]).pvalue > 1e-3


@given(height=st.integers(1, 300), width=st.integers(1, 300), seed=st.integers(0, 2**32))
@settings(max_examples=200, derandomize=True)
def test_boxes_lie_inside(height, width, seed):
  boxes = draw_erasing_boxes((height, width), random.Random(seed), probability=1.0, max_count=4)
  assert boxes.dtype == np.int32 and boxes.shape == (4, 4)
  top, left, h, w = boxes.T
  assert (boxes >= 0).all()
  assert (top + h <= height).all() and (left + w <= width).all()
  assert ((h < height) & (w < width)).all()


BOXES = jnp.array([[[2, 3, 10, 12], [5, 5, 20, 8]], [[0, 0, 0, 0], [0, 0, 0, 0]]], jnp.int32)
INSIDE = np.zeros((32, 32), bool)
INSIDE[2:12, 3:15] = INSIDE[5:25, 5:13] = True


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_only_the_boxes_change(mode):
  images = jnp.full((2, 32, 32, 3), 7.0)
  result = np.asarray(erase(images, BOXES, jax.random.key(0), mode=mode))
  assert result.dtype == np.float32
  np.testing.assert_array_equal((result[0] != 7).all(axis=-1), INSIDE)
  np.testing.assert_array_equal(result[1], images[1])
  last = result[0, 5:25, 5:13].reshape(-1, 3)
  values = len(np.unique(last, axis=0))
  assert values == {"pixel": len(last), "rand": 1, "const": 1}[mode]
  if mode == "const":
    assert (last == 0).all()


def test_pixel_noise_is_standard_normal():
  boxes = jnp.array([[[0, 0, 99, 99]]], jnp.int32)
  noise = erase(jnp.full((1, 100, 100, 3), 9.0), boxes, jax.random.key(1))[0, :99, :99]
  assert scipy.stats.kstest(np.asarray(noise).ravel(), "norm").pvalue > 1e-3


def test_unknown_mode():
  with pytest.raises(UserError, match="mode of random erasing 'noise'"):
    erase(jnp.zeros((2, 32, 32, 3)), BOXES, jax.random.key(0), mode="noise")
