"""RandAugment against golden images, replayed draws and the published scales."""

import math
import pathlib
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from gfnet_jax.data import randaugment
from gfnet_jax.data.randaugment import (
  FILL,
  INCREASING_OPERATIONS,
  OPERATIONS,
  RandAugment,
  parse_randaugment,
)
from gfnet_jax.errors import UserError

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "randaugment_ops_m9.npz")
OFFICIAL = parse_randaugment("rand-m9-mstd0.5-inc1")
BY_NAME = {operation.name: operation for operation in INCREASING_OPERATIONS}


def golden_cases():
  for key in GOLDEN.files:
    if key != "input":
      name, _, argument = key.split("|")
      yield name.removesuffix("Increasing"), argument.removeprefix("args="), key


def apply(name, argument, image, resample=Image.Resampling.BICUBIC):
  operation = BY_NAME[name]
  filters = (resample,) if operation.geometric else ()
  return operation.apply(image, argument, *filters)


@pytest.mark.parity
@pytest.mark.parametrize("name, argument, key", list(golden_cases()))
def test_operation_equals_golden(name, argument, key):
  operation = BY_NAME[name]
  # The argument comes from level 9 of either sign, as it does in training.
  arguments = {str(float(x)): x for x in map(operation.argument, (9, -9)) if x is not None}
  result = apply(name, arguments.get(argument), Image.fromarray(GOLDEN["input"]))
  assert (argument in arguments) or argument == ""
  np.testing.assert_array_equal(np.asarray(result), GOLDEN[key])


def test_every_operation_has_a_golden_image():
  assert {name for name, _, _ in golden_cases()} == set(BY_NAME)


def test_fill_is_the_mean_of_imagenet():
  assert FILL == (124, 116, 104)


def test_order_of_operations():
  names = (
    "AutoContrast Equalize Invert Rotate Posterize Solarize SolarizeAdd Color Contrast "
    "Brightness Sharpness ShearX ShearY TranslateXRel TranslateYRel"
  )
  assert [op.name for op in INCREASING_OPERATIONS] == names.split()
  assert [op.name for op in OPERATIONS] == names.split()
  signed = {op.name for op in INCREASING_OPERATIONS if op.signed}
  assert signed == set(names.split()) - set(names.split()[:3]) - set(names.split()[4:7])


ENHANCEMENTS = ("Color", "Contrast", "Brightness", "Sharpness")


def published_argument(name, level):
  """The scales of the paper's code, with a level of either sign, in other words."""
  fraction = abs(level) / 10
  sign = math.copysign(1, level)
  if name == "Posterize":
    return 4 - math.trunc(fraction * 4)
  if name == "Solarize":
    return 256 - math.trunc(fraction * 256)
  if name == "SolarizeAdd":
    return math.trunc(fraction * 110)
  if name in ENHANCEMENTS:
    return 1 + sign * (fraction * 0.9)
  end = {"Rotate": 30, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45, "TranslateYRel": 0.45}
  return sign * (fraction * end[name]) if name in end else None


@pytest.mark.parametrize("name", BY_NAME)
def test_arguments_of_a_thousand_levels(name):
  for level in np.linspace(0, 10, 1000):
    for signed_level in (level, -level) if BY_NAME[name].signed else (level,):
      argument = BY_NAME[name].argument(float(signed_level))
      expected = published_argument(name, float(signed_level))
      if name in ENHANCEMENTS:  # Pillow takes the factor as a float32
        argument, expected = np.float32(argument), np.float32(expected)
      assert argument == expected, signed_level


def test_arguments_at_the_steps():
  posterize, solarize = BY_NAME["Posterize"].argument, BY_NAME["Solarize"].argument
  add = BY_NAME["SolarizeAdd"].argument
  assert [posterize(x) for x in (5, 7.49, 7.5, 9.99, 10)] == [2, 2, 1, 1, 0]
  assert [solarize(x) for x in (8, 8.5, 9, 9.5, 10)] == [52, 39, 26, 13, 0]
  assert [add(x) for x in (8, 8.5, 9, 9.5, 10)] == [88, 93, 99, 104, 110]


def test_original_scales_without_inc():
  by_name = {operation.name: operation for operation in OPERATIONS}
  assert by_name["Posterize"].argument(9) == 3
  assert by_name["Solarize"].argument(9) == 230
  assert by_name["Color"].argument(5) == 1
  assert not by_name["Color"].signed
  assert by_name["Rotate"].argument(-9) == -27


def test_levels_beyond_ten_stay_valid():
  image = Image.fromarray(GOLDEN["input"])
  for inc in (0, 1):
    augment = parse_randaugment(f"rand-m30-mmax30-inc{inc}-p1-n1")
    for seed in range(100):
      assert augment(image, random.Random(seed)).size == image.size


def test_posterize_to_zero_bits_is_black():
  image = Image.fromarray(GOLDEN["input"])
  assert np.asarray(apply("Posterize", 0, image)).max() == 0


def test_solarize_with_both_ends():
  image = Image.fromarray(GOLDEN["input"])
  np.testing.assert_array_equal(apply("Solarize", 256, image), GOLDEN["input"])
  np.testing.assert_array_equal(apply("Solarize", 0, image), 255 - GOLDEN["input"])


def bicubic_affine(pixels, matrix):
  """Pillow's affine transform in NumPy: Keys cubic with a = -1, edges clamped, truncated."""
  height, width, _ = pixels.shape
  a, b, c, d, e, f = matrix
  x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
  source_x, source_y = a * x + b * y + c, d * x + e * y + f
  outside = (source_x < 0) | (source_x >= width) | (source_y < 0) | (source_y >= height)
  source_x, source_y = source_x - 0.5, source_y - 0.5
  column, row = np.floor(source_x).astype(int), np.floor(source_y).astype(int)
  dx, dy = (source_x - column)[..., None], (source_y - row)[..., None]

  def cubic(v, t):
    v1, v2, v3, v4 = v
    return v2 + t * (-v1 + v3 + t * (2 * (v1 - v2) + v3 - v4 + t * (-v1 + v2 - v3 + v4)))

  def taken(i, j):
    rows, columns = (row + i).clip(0, height - 1), (column + j).clip(0, width - 1)
    return pixels[rows, columns].astype(float)

  taps = (-1, 0, 1, 2)
  result = cubic([cubic([taken(i, j) for j in taps], dx) for i in taps], dy)
  result = np.trunc(result.clip(0, 255)).astype(np.uint8)
  result[outside] = FILL
  return result


@pytest.mark.parametrize("seed", range(5))
def test_geometric_operations_equal_a_model(seed):
  rng = np.random.default_rng(seed)
  height, width = rng.integers(5, 60, 2)
  pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
  image, amount = Image.fromarray(pixels), rng.uniform(-0.4, 0.4)
  theta = -math.radians((100 * amount) % 360)
  cos, sin = round(math.cos(theta), 15), round(math.sin(theta), 15)
  x, y = width / 2, height / 2
  rotation = (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)
  for name, argument, matrix in [
    ("ShearX", amount, (1, amount, 0, 0, 1, 0)),
    ("ShearY", amount, (1, 0, 0, amount, 1, 0)),
    ("TranslateXRel", amount, (1, 0, amount * width, 0, 1, 0)),
    ("TranslateYRel", amount, (1, 0, 0, 0, 1, amount * height)),
    ("Rotate", 100 * amount, rotation),
  ]:
    result = np.asarray(apply(name, argument, image)).astype(int)
    expected = bicubic_affine(pixels, matrix).astype(int)
    # The last bit of float64 may decide where a value is truncated; nowhere else differs.
    assert (result != expected).mean() < 1e-3, name


@pytest.mark.parity
def test_twelve_golden_images_with_the_official_draws(monkeypatch):
  numpy_rng = np.random.RandomState(0)

  def choose_as_numpy(operations, count, rng):
    return [operations[i] for i in numpy_rng.choice(len(operations), count)]

  monkeypatch.setattr(randaugment, "choose_operations", choose_as_numpy)
  rng = random.Random(0)
  drawn = [
    [
      (step.operation.name, None if step.argument is None else round(step.argument, 10))
      for step in OFFICIAL.draw(rng)
    ]
    for _ in range(12)
  ]
  assert drawn == [
    [],
    [("AutoContrast", None), ("Rotate", -28.7921200181)],
    [("ShearX", -0.2503644395)],
    [("Color", 0.1812750516)],
    [("Rotate", -30.0)],
    [("Invert", None)],
    [],
    [("Contrast", 0.1512722757)],
    [("Sharpness", 0.161601127)],
    [("Equalize", None), ("SolarizeAdd", 92)],
    [("Color", 1.8402863493)],
    [("TranslateYRel", -0.3752081445), ("Contrast", 1.7685912849)],
  ]


def test_distribution_of_a_hundred_thousand_draws():
  rng = random.Random(1)
  draws = [OFFICIAL.draw(rng) for _ in range(100_000)]

  applied = Counter(map(len, draws))
  expected = [25_000, 50_000, 25_000]
  assert scipy.stats.chisquare([applied[i] for i in range(3)], expected).pvalue > 1e-3

  steps = [step for draw in draws for step in draw]
  names = Counter(step.operation.name for step in steps)
  assert len(names) == 15
  assert scipy.stats.chisquare(list(names.values())).pvalue > 1e-3

  for name in [op.name for op in INCREASING_OPERATIONS if op.signed]:
    middle = 1 if name in ENHANCEMENTS else 0
    arguments = np.array([step.argument for step in steps if step.operation.name == name])
    signs = [(arguments > middle).sum(), (arguments < middle).sum()]
    assert scipy.stats.chisquare(signs).pvalue > 1e-3, name

  levels = np.abs([step.argument / 3 for step in steps if step.operation.name == "Rotate"])
  clipped = (levels == 10).sum()
  rate = scipy.stats.norm.sf(2)
  odds = [clipped, len(levels) - clipped]
  assert scipy.stats.chisquare(odds, len(levels) * np.array([rate, 1 - rate])).pvalue > 1e-3


def test_pairs_of_operations_are_independent():
  rng = random.Random(2)
  always = parse_randaugment("rand-p1")
  pairs = np.zeros((15, 15))
  index = {operation.name: i for i, operation in enumerate(OPERATIONS)}
  for _ in range(100_000):
    first, second = always.draw(rng)
    pairs[index[first.operation.name], index[second.operation.name]] += 1
  assert scipy.stats.chisquare(pairs.ravel()).pvalue > 1e-3


def test_result_depends_on_the_generator_alone():
  image = Image.fromarray(GOLDEN["input"])
  augment = parse_randaugment("rand-m9-mstd0.5-inc1-p1-n3", interpolation="random")
  state = random.getstate()
  results = [np.asarray(augment(image, random.Random(seed))) for seed in (3, 3, 4)]
  assert random.getstate() == state
  np.testing.assert_array_equal(results[0], results[1])
  assert (results[0] != results[2]).any()
  np.testing.assert_array_equal(np.asarray(image), GOLDEN["input"])


def test_random_interpolation_draws_both_filters_for_geometric_operations():
  augment = parse_randaugment("rand-p1-inc1", interpolation="random")
  rng = random.Random(0)
  steps = [step for _ in range(500) for step in augment.draw(rng)]
  filters = {step.resample for step in steps if step.operation.geometric}
  assert filters == {Image.Resampling.BILINEAR, Image.Resampling.BICUBIC}
  assert {step.resample for step in steps if not step.operation.geometric} == {None}


def test_strings():
  assert RandAugment(magnitude=9, magnitude_std=0.5, increasing=True) == OFFICIAL
  assert parse_randaugment("rand") == RandAugment()
  assert parse_randaugment("rand-n3-p0.25-mmax12-inc0-m11") == RandAugment(
    num_operations=3, probability=0.25, magnitude_max=12, magnitude=11
  )
  assert pickle.loads(pickle.dumps(OFFICIAL)) == OFFICIAL


def test_uniform_levels_above_std_100():
  augment = parse_randaugment("rand-m8-mstd101-p1-n1")
  rng = random.Random(0)
  steps = [step for _ in range(20_000) for step in augment.draw(rng)]
  levels = np.abs([step.argument / 3 for step in steps if step.operation.name == "Rotate"])
  assert scipy.stats.kstest(levels, scipy.stats.uniform(0, 8).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
  "text, message",
  [
    ("rand-m9-w0", "has the section 'w0'"),
    ("rand-m", "has the section 'm'"),
    ("rand-n2.5", "has the section 'n2.5'"),
    ("rand--m9", "has the section ''"),
    ("rand-p1.5", "probability 1.5, above 1"),
  ],
)
def test_wrong_strings_are_named(text, message):
  with pytest.raises(UserError, match=message):
    parse_randaugment(text)
