"""Decoding, evaluation transform and training crops against golden data and models."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from gfnet_jax.data.transforms import BadImageError, decode_image, eval_transform
from gfnet_jax.errors import UserError

GOLDEN = pathlib.Path(__file__).parent / "golden" / "eval_transform_96.npz"
GOLDEN_CASES = [
  "landscape_jpeg",
  "portrait_jpeg_odd",
  "small_upscaled_png",
  "gray_jpeg",
  "cmyk_jpeg",
]


@pytest.mark.parity
@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_eval_transform_equals_golden(case):
  golden = np.load(GOLDEN)
  image = decode_image(golden[f"{case}|bytes"].tobytes())
  np.testing.assert_array_equal(eval_transform(image, 96), golden[f"{case}|expected"])
