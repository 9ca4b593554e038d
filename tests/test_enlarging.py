"""The evaluation transform of thin images: Pillow's two steps, without the pixels between them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gfnet_jax.data import transforms
from gfnet_jax.data.enlarging import enlarged_part
from gfnet_jax.data.transforms import eval_transform

SIDES = st.integers(33, 70)


def thin_image(short, long, upright):
  shape = (long, short) if upright else (short, long)
  return Image.fromarray(np.random.default_rng(long).integers(0, 256, (*shape, 3), np.uint8))


def two_steps(image, size):
  """Resizes the whole and cuts out the centre, as the official code does."""
  width, height = transforms._covering_width_height(image, size)
  left, top = round((width - size[1]) / 2), round((height - size[0]) / 2)
  whole = image.resize((width, height), Image.Resampling.BICUBIC)
  return np.asarray(whole.crop((left, top, left + size[1], top + size[0])))


@pytest.mark.parity
@given(short=st.integers(1, 7), long=st.integers(100, 900), upright=st.booleans(), h=SIDES, w=SIDES)
@settings(max_examples=50, derandomize=True)
def test_thin_images_equal_the_two_steps(short, long, upright, h, w):
  image = thin_image(short, long, upright)
  np.testing.assert_array_equal(eval_transform(image, (h, w)), two_steps(image, (h, w)))


@pytest.mark.parity
@given(width=st.integers(1, 60), height=st.integers(1, 60), data=st.data())
@settings(max_examples=100, derandomize=True)
def test_any_part_of_any_enlargement_equals_pillows(width, height, data):
  image = Image.fromarray(
    np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
  )
  size = data.draw(st.integers(width, 200)), data.draw(st.integers(height, 200))
  left, top = data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))
  right, bottom = (
    data.draw(st.integers(start + 1, end)) for start, end in zip((left, top), size, strict=True)
  )
  box = (left, top, right, bottom)
  expected = np.asarray(image.resize(size, Image.Resampling.BICUBIC).crop(box))
  np.testing.assert_array_equal(enlarged_part(image, size, box), expected)


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize(("short", "long"), [(1, 65_501), (1, 20_001), (2, 40_001), (1, 4_000_001)])
def test_the_thinnest_images_are_never_enlarged_as_a_whole(monkeypatch, short, long, upright):
  """Their centre is that of a shorter image of the same pixels."""
  image = thin_image(short, long, upright)
  cut = (long - 41) // 2  # whole pixels on either side
  box = (0, cut, short, long - cut) if upright else (cut, 0, long - cut, short)
  expected = two_steps(image.crop(box), (224, 224))
  with monkeypatch.context() as patch:
    patch.setattr(Image.Image, "resize", None)
    found = eval_transform(image, 224)
  np.testing.assert_array_equal(found, expected)
