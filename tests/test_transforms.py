"""Decoding, evaluation transform and training crops against golden data and models."""

import contextlib
import io
import math
import pathlib
import pickle
import random

import jax
import numpy as np
import PIL
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from gfnet_jax.data import transforms
from gfnet_jax.data.augmentations import AUGMENTATIONS, color_jitter
from gfnet_jax.data.crops import CROPS, CropOptions, draw_crop, padded_crop
from gfnet_jax.data.decode import BadImageError, decode_image, load_rgb, open_image
from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.data.transforms import EvalTransform, TrainTransform, eval_transform
from gfnet_jax.errors import UserError

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "eval_transform_96.npz")
GOLDEN_CASES = sorted({key.split("|")[0] for key in GOLDEN.files if "|" in key})
VERTICAL_FIRST = tuple(map(int, PIL.__version__.split(".")[:2])) >= (13, 0)
IMAGENET = dict(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))


def noise(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encode(image, format="PNG", **options):
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


# --- Evaluation -------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_eval_transform_equals_golden(case):
  image = decode_image(GOLDEN[f"{case}|bytes"].tobytes())
  np.testing.assert_array_equal(eval_transform(image, 96), GOLDEN[f"{case}|expected"])


def resize_matrix(size_in, size_out):
  """(size_out, size_in) of the fixed-point weights of Pillow's bicubic filter."""
  scale = size_in / size_out
  stretch = max(scale, 1.0)
  weights = np.zeros((size_out, size_in), np.int64)
  for i in range(size_out):
    centre = (i + 0.5) * scale
    low = max(0, math.trunc(centre - 2 * stretch + 0.5))
    high = min(size_in, math.trunc(centre + 2 * stretch + 0.5))
    t = np.abs((np.arange(low, high) - centre + 0.5) * (1 / stretch))
    a = -0.5
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = a * (((t - 5) * t + 8) * t - 4)
    kernel = np.where(t < 1, near, np.where(t < 2, far, 0))
    kernel = kernel / sum(kernel.tolist())
    weights[i, low:high] = np.trunc(kernel * 2**22 + np.copysign(0.5, kernel))
  return weights


def model_resize(pixels, height, width):
  """Pillow's bicubic resize in NumPy, with its rounding between the passes."""

  def one_pass(array, axis, size):
    if array.shape[axis] == size:
      return array
    product = np.tensordot(
      resize_matrix(array.shape[axis], size), array.astype(np.int64), (1, axis)
    )
    return np.moveaxis(((product + 2**21) >> 22).clip(0, 255), 0, axis)

  fewer_rows, fewer_columns = pixels.shape[0] - height, pixels.shape[1] - width
  passes = [(1, width), (0, height)]
  if VERTICAL_FIRST and fewer_rows > 0 and fewer_rows > 2 * fewer_columns:
    passes.reverse()
  for axis, size in passes:
    pixels = one_pass(pixels, axis, size)
  return pixels


def model_eval_transform(pixels, size):
  """The official rule for a square image size, word by word."""
  height, width, _ = pixels.shape
  target = math.trunc(256 / 224 * size)
  short, long = min(height, width), max(height, width)
  longer = math.trunc(target * long / short)
  height, width = (target, longer) if height <= width else (longer, target)
  pixels = model_resize(pixels, height, width)
  top, left = round((height - size) / 2), round((width - size) / 2)
  return pixels[top : top + size, left : left + size]


@pytest.mark.parity
def test_eval_transform_equals_the_rule_for_200_sizes():
  rng = random.Random(0)
  for seed in range(200):
    # A third narrow enough for the vertical pass to come first.
    height, width = rng.randint(20, 260), rng.randint(20, 260 if seed % 3 else 60)
    size = rng.choice([33, 40, 48, 64, 96])
    pixels = noise(height, width, seed)
    result = eval_transform(Image.fromarray(pixels), size)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, model_eval_transform(pixels, size), str(pixels.shape))


@pytest.mark.parametrize(
  "size, short",
  [(96, 109), (112, 128), (160, 182), (192, 219), (224, 256), (288, 329), (384, 438), (512, 585)],
)
def test_short_side_before_the_crop(size, short):
  image = Image.new("RGB", (600, 400))
  assert transforms._covering_width_height(image, (size, size)) == (int(short * 1.5), short)
  assert (
    transforms._covering_width_height(image.transpose(Image.Transpose.ROTATE_90), (size, size))[0]
    == short
  )


@given(
  image=st.tuples(st.integers(1, 400), st.integers(1, 400)),
  size=st.tuples(st.integers(33, 80), st.integers(1, 80)),
)
@settings(max_examples=100, derandomize=True)
def test_eval_transform_of_any_shape_has_the_size(image, size):
  white = Image.new("RGB", image[::-1], "white")
  result = eval_transform(white, size)
  assert result.shape == (*size, 3)
  assert result.min() == 255  # the crop never leaves the image, and constants stay


def test_eval_transform_covers_a_wide_size_without_distortion():
  # 256/224 * (112, 224) = (128, 256): the height decides for 300x400, the width for 100x400.
  assert transforms._covering_width_height(Image.new("RGB", (400, 300)), (112, 224)) == (256, 192)
  assert transforms._covering_width_height(Image.new("RGB", (400, 100)), (112, 224)) == (512, 128)


def test_small_sizes_are_taken_as_they_are():
  pixels = noise(32, 32)
  np.testing.assert_array_equal(eval_transform(Image.fromarray(pixels), 32), pixels)
  with pytest.raises(UserError, match=r"image of 30x31 .* expected 32x32"):
    eval_transform(Image.fromarray(noise(30, 31)), 32)


# --- Decoding ---------------------------------------------------------------------------


def test_grey_files():
  grey = noise(40, 50)[..., 0]
  np.testing.assert_array_equal(
    decode_image(encode(Image.fromarray(grey))), np.stack([grey] * 3, axis=-1)
  )


def test_transparent_files_lose_their_alpha():
  rgba = np.concatenate([noise(40, 50), noise(40, 50, 1)[..., :1]], axis=-1)
  np.testing.assert_array_equal(decode_image(encode(Image.fromarray(rgba))), rgba[..., :3])


def test_palette_files_show_their_colours():
  palette = Image.fromarray(noise(40, 50)).quantize(16)
  for format in ("PNG", "GIF"):
    np.testing.assert_array_equal(
      decode_image(encode(palette, format)), np.asarray(palette.convert("RGB"))
    )


def test_cmyk_files():
  cmyk = Image.fromarray(noise(40, 50)).convert("CMYK")
  data = encode(cmyk, "TIFF")
  np.testing.assert_array_equal(decode_image(data), np.asarray(cmyk.convert("RGB")))


def test_16_bit_files_are_converted_by_pillow():
  deep = np.random.default_rng(0).integers(0, 2**16, (40, 50), np.uint16)
  data = encode(Image.fromarray(deep))
  assert Image.open(io.BytesIO(data)).mode == "I;16"
  expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
  np.testing.assert_array_equal(decode_image(data), expected)


def test_exif_orientation_is_ignored():
  image = Image.fromarray(noise(40, 50))
  exif = Image.Exif()
  exif[0x0112] = 6  # to be shown rotated by 90 degrees
  np.testing.assert_array_equal(
    decode_image(encode(image, "JPEG", exif=exif)), np.asarray(decode_image(encode(image, "JPEG")))
  )


def damaged_files():
  jpeg, png = (encode(Image.fromarray(noise(40, 50)), format) for format in ("JPEG", "PNG"))
  return {
    "empty": b"",
    "text": b"<html>not found</html>",
    "truncated jpeg": jpeg[: len(jpeg) // 2],
    "truncated png": png[: len(png) // 2],
    "png with a damaged checksum": png[:20] + b"\xff\xff" + png[22:],
  }


@pytest.mark.parametrize("data", damaged_files().values(), ids=damaged_files().keys())
def test_damaged_files(data):
  with pytest.raises(BadImageError, match="not a readable image"):
    decode_image(data)


def test_decompression_bomb(monkeypatch):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
  with pytest.raises(BadImageError, match="decompression bomb"):
    decode_image(encode(Image.fromarray(noise(40, 50))))


def test_random_damage_is_an_image_or_a_bad_image():
  rng = random.Random(0)
  jpeg = encode(Image.fromarray(noise(40, 50)), "JPEG")
  for _ in range(300):
    damaged = bytearray(jpeg)
    for _ in range(5):
      damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    with contextlib.suppress(BadImageError):
      assert decode_image(bytes(damaged)).mode == "RGB"


# --- Training ---------------------------------------------------------------------------


@pytest.mark.parity
def test_golden_crops():
  rng = random.Random(0)
  boxes = [draw_crop(500, 375, rng, **IMAGENET) for _ in range(6)]
  assert [(top, left, b - top, r - left) for left, top, r, b in boxes] == [
    (3, 5, 372, 432),
    (103, 155, 243, 245),
    (24, 316, 219, 178),
    (34, 45, 340, 450),
    (9, 6, 350, 442),
    (21, 60, 335, 421),
  ]


@pytest.mark.parity
def test_golden_crops_that_never_fit():
  assert draw_crop(1000, 10, random.Random(0), **IMAGENET) == (493, 0, 493 + 13, 10)
  assert draw_crop(10, 1000, random.Random(0), **IMAGENET) == (0, 493, 10, 493 + 13)
  square = draw_crop(10, 10, random.Random(0), scale=(9, 9), ratio=(3 / 4, 4 / 3))
  assert square == (0, 0, 10, 10)


@given(
  width=st.integers(1, 600),
  height=st.integers(1, 600),
  seed=st.integers(0, 2**32),
)
@settings(max_examples=200, derandomize=True)
def test_crops_lie_inside(width, height, seed):
  left, top, right, bottom = draw_crop(width, height, random.Random(seed), **IMAGENET)
  assert 0 <= left <= right <= width
  assert 0 <= top <= bottom <= height


def test_crop_is_resized_without_its_surroundings():
  pixels = noise(120, 160)
  rng = random.Random(3)
  transform = TrainTransform(image_size=(48, 40), flip=0.0, auto_augment="", color_jitter=0.0)
  result = transform(Image.fromarray(pixels), rng)
  left, top, right, bottom = draw_crop(160, 120, random.Random(3), **IMAGENET)
  np.testing.assert_array_equal(result, model_resize(pixels[top:bottom, left:right], 48, 40))


def test_random_interpolation_follows_the_crop():
  options = dict(image_size=32, flip=0.0, auto_augment="", color_jitter=0.0)
  image = Image.fromarray(noise(60, 80))
  one_of_two = TrainTransform(interpolation="random", **options)
  fixed = [TrainTransform(interpolation=name, **options) for name in ("bilinear", "bicubic")]
  chosen = set()
  for seed in range(20):
    result = one_of_two(image, random.Random(seed))
    equal = [(transform(image, random.Random(seed)) == result).all() for transform in fixed]
    assert sum(equal) == 1
    chosen.add(equal.index(True))
  assert chosen == {0, 1}


def test_opened_images_give_what_decoded_ones_give():
  data = encode(Image.fromarray(noise(120, 160)), "JPEG")
  for options in (dict(image_size=48), dict(image_size=100, crop="pad")):
    transform = TrainTransform(**options)
    results = [transform(get(data), random.Random(1)) for get in (open_image, decode_image)]
    np.testing.assert_array_equal(*results)


def test_damage_after_the_header_is_found_by_the_transform():
  data = encode(Image.fromarray(noise(120, 160)), "JPEG")
  with pytest.raises(BadImageError, match="truncated"):
    TrainTransform(image_size=48)(open_image(data[:3000]), random.Random(1))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_fast_decode_is_close_and_decodes_large_crops_at_a_part_of_their_size(mode):
  rows, columns = np.mgrid[0:375, 0:501] / 400
  smooth = np.stack([rows, columns, 0.5 + 0.5 * np.sin(9 * rows)], axis=-1)
  image = Image.fromarray(np.uint8(255 * smooth.clip(0, 1))).convert(mode)
  data = encode(image, "JPEG", quality=95)
  options = dict(image_size=160, auto_augment="", color_jitter=0.0)
  exact, fast = (TrainTransform(fast_decode=fast, **options) for fast in (False, True))
  sizes = set()
  for seed in range(60):
    opened = open_image(data)
    result = fast(opened, random.Random(seed))
    sizes.add(opened.size)
    difference = np.abs(exact(open_image(data), random.Random(seed)).astype(int) - result)
    assert difference.mean() < 2
  assert sizes == {(501, 375), (251, 188), (126, 94)}


def test_fast_decode_of_other_formats_only_filters_faster():
  data = encode(Image.fromarray(noise(200, 200)), "PNG")
  opened = open_image(data)
  TrainTransform(image_size=48, fast_decode=True)(opened, random.Random(0))
  assert opened.size == (200, 200)


def test_flip_rate():
  image = Image.fromarray(np.array([[[0] * 3, [255] * 3]], np.uint8))
  transform = TrainTransform(
    image_size=(1, 2), crop="pad", padding=0, auto_augment="", color_jitter=0.0
  )
  rng = random.Random(0)
  flipped = sum(int(transform(image, rng)[0, 0, 0] == 255) for _ in range(10_000))
  assert scipy.stats.binomtest(flipped, 10_000).pvalue > 1e-3


def padding_by(padding, size):
  """Options of which `padded_crop` takes two."""
  return CropOptions(
    image_size=size, padding=padding, **IMAGENET, interpolation="bicubic", fast_decode=False
  )


def test_padded_crop_shows_every_window_equally():
  pixels = noise(8, 8)
  framed = np.pad(pixels, ((1, 1), (1, 1), (0, 0)))
  windows = [framed[i : i + 8, j : j + 8].tobytes() for i in range(3) for j in range(3)]
  rng = random.Random(0)
  counts = [0] * 9
  for _ in range(9000):
    window = padded_crop(Image.fromarray(pixels), rng, padding_by(1, (8, 8)))
    counts[windows.index(np.asarray(window).tobytes())] += 1
  assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_padded_crop_without_choice_draws_nothing():
  pixels = noise(8, 8)
  rng = random.Random(0)
  state = rng.getstate()
  np.testing.assert_array_equal(
    padded_crop(Image.fromarray(pixels), rng, padding_by(0, (8, 8))), pixels
  )
  assert rng.getstate() == state


def test_padded_crop_of_a_small_image():
  with pytest.raises(UserError, match=r"image of 8x8 .* padded by 4, expected at least 17x16"):
    padded_crop(Image.fromarray(noise(8, 8)), random.Random(0), padding_by(4, (17, 16)))


def test_color_jitter_applies_three_factors_in_the_drawn_order():
  image = Image.fromarray(noise(20, 30))
  rng = random.Random(5)
  order = rng.sample(range(3), 3)
  brightness, contrast, color = (rng.uniform(0.6, 1.4) for _ in range(3))
  steps = [
    (ImageEnhance.Brightness, brightness),
    (ImageEnhance.Contrast, contrast),
    (ImageEnhance.Color, color),
  ]
  expected = image
  for i in order:
    enhancer, factor = steps[i]
    expected = enhancer(expected).enhance(factor)
  np.testing.assert_array_equal(color_jitter(image, 0.4, random.Random(5)), expected)


def test_color_jitter_only_without_auto_augment():
  image, options = Image.fromarray(noise(32, 32)), dict(image_size=32, crop="pad", flip=0.0)
  for augment, differs in (("", True), ("rand-n0", False)):
    results = [
      TrainTransform(auto_augment=augment, color_jitter=strength, **options)(
        image, random.Random(0)
      )
      for strength in (0.0, 0.4)
    ]
    assert (results[0] != results[1]).any() == differs


def test_train_transform_depends_on_the_generator_alone_and_is_picklable():
  image = Image.fromarray(noise(120, 160))
  transform = TrainTransform(image_size=48, interpolation="random")
  state = random.getstate()
  first = transform(image, random.Random(1))
  again = pickle.loads(pickle.dumps(transform))(image, random.Random(1))
  assert random.getstate() == state
  assert first.shape == (48, 48, 3) and first.dtype == np.uint8
  np.testing.assert_array_equal(first, again)
  assert (first != transform(image, random.Random(2))).any()


def test_eval_transform_object():
  image = Image.fromarray(noise(120, 160))
  transform = pickle.loads(pickle.dumps(EvalTransform((48, 40))))
  assert transform.image_size == (48, 40)
  np.testing.assert_array_equal(transform(image), eval_transform(image, (48, 40)))


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(crop="center"), "unknown crop 'center', expected one of random_resized, pad$"),
    (dict(crop="random_resize"), r"; did you mean random_resized\?$"),
    (dict(interpolation="lanczos"), "interpolation 'lanczos', .* bilinear, bicubic, random$"),
    (dict(auto_augment="v0"), r"unknown auto_augment 'v0', expected one of rand, affine, jitter$"),
    (
      dict(auto_augment="radn-m9"),
      r"'radn', expected one of rand, affine, jitter; did you mean rand\?$",
    ),
    (dict(scale=(0.5, 2.0)), r"augment\.scale is \(0\.5, 2\.0\), expected two fractions of 1"),
    (dict(scale=(0.0, 1.0)), r"augment\.scale is \(0\.0, 1\.0\), expected two fractions of 1"),
    (dict(image_size=0), "image_size is 0"),
  ],
)
def test_wrong_options_are_named(options, message):
  with pytest.raises(UserError, match=message):
    TrainTransform(**{"image_size": 32, **options})


# --- Crops and augmentations of one's own -------------------------------------------------


def right_edge(image, rng, options):
  """A crop: the rightmost window, unless the draw says the leftmost one."""
  height, width = options.image_size
  left = image.width - width if rng.random() < 0.5 else 0
  return load_rgb(image).crop((left, 0, left + width, height))


class Brighten:
  """An augmentation: brighten-N adds up to N to every value."""

  def __init__(self, text, *, interpolation):
    _, self.most = text.split("-")
    self.interpolation = interpolation

  def __call__(self, image, rng):
    amount = rng.randint(1, int(self.most))
    return image.point(lambda value: min(255, value + amount))


def test_a_crop_and_an_augmentation_of_ones_own_take_an_entry_each(monkeypatch):
  monkeypatch.setitem(CROPS, "right_edge", right_edge)
  monkeypatch.setitem(AUGMENTATIONS, "brighten", Brighten)
  transform = TrainTransform(
    image_size=(48, 40),
    crop="right_edge",
    auto_augment="brighten-9",
    interpolation="random",
    color_jitter=0.4,  # not in effect beside an augmentation
  )
  monkeypatch.undo()
  transform = pickle.loads(pickle.dumps(transform))  # as in a worker, with the tables as they are
  assert transform._augment.interpolation == "random"
  pixels = noise(60, 70)
  data, seen = encode(Image.fromarray(pixels)), set()
  for seed in range(20):
    rng = random.Random(seed)
    left = 30 if rng.random() < 0.5 else 0
    expected = pixels[:48, left : left + 40]
    flipped = rng.random() < 0.5
    expected = expected[:, ::-1] if flipped else expected
    expected = (expected.astype(int) + rng.randint(1, 9)).clip(0, 255)
    np.testing.assert_array_equal(transform(open_image(data), random.Random(seed)), expected)
    seen.add((left, flipped))
  assert len(seen) == 4


# --- Normalisation ----------------------------------------------------------------------


@pytest.mark.parity
def test_normalize_equals_torchvision():
  torch = pytest.importorskip("torch")
  images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
  mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
  expected = (torch.from_numpy(images) / 255 - mean) / std
  np.testing.assert_allclose(jax.jit(normalize)(images), expected.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
  ("augment", "found"),
  [
    (lambda image, rng: image.convert("L"), "mode=L size=48x48"),
    (lambda image, rng: image.resize((20, 30)), "mode=RGB size=20x30"),
    (lambda image, rng: None, "None"),
  ],
)
def test_an_augmentation_that_breaks_the_contract_is_named(monkeypatch, augment, found):
  monkeypatch.setitem(AUGMENTATIONS, "odd", lambda text, *, interpolation: augment)
  transform = TrainTransform(image_size=48, auto_augment="odd-1")
  with pytest.raises(UserError, match=f"auto_augment 'odd-1' gave .*{found}.*RGB and 48 x 48"):
    transform(Image.new("RGB", (60, 60)), random.Random(0))
