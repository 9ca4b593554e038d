"""Which image files are read: formats by name, sizes, and grey of more than 8 bits."""

import contextlib
import io
import logging
import random
import warnings

import numpy as np
import pytest
from PIL import Image

from gfnet_jax.data import decode
from gfnet_jax.data.decode import (
  FORMATS,
  BadImageError,
  decode_image,
  image_suffixes,
  is_clipped,
  open_image,
)
from gfnet_jax.data.pipeline import Reading, eval_batches, train_batches
from gfnet_jax.data.samples import Share
from gfnet_jax.data.sources.records import Record
from gfnet_jax.data.transforms import EvalTransform, TrainTransform

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
DEEP = np.random.default_rng(0).integers(0, 2**16, (40, 50), np.uint16)


def encode(image, format):
  file = io.BytesIO()
  image.save(file, format)
  return file.getvalue()


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read_as_pillow_reads_it(format):
  data = encode(Image.fromarray(PIXELS), format)
  expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
  np.testing.assert_array_equal(decode_image(data), expected)
  np.testing.assert_array_equal(decode_image(io.BytesIO(data)), expected)


@pytest.mark.parametrize("format", ["EPS", "PDF", "ICO", "PCX", "SGI", "TGA", "DDS"])
def test_other_formats_are_not_opened_whatever_the_file_is_called(format):
  with pytest.raises(BadImageError, match="empty, damaged, or none of JPEG, PNG, WEBP"):
    open_image(encode(Image.fromarray(PIXELS), format))


def test_suffixes_are_those_of_the_formats():
  suffixes = image_suffixes()
  assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".gif", ".ppm", ".pgm"} <= suffixes
  assert {".jp2", ".avif", ".tiff", ".jfif"} <= suffixes
  assert not {".pdf", ".eps", ".ps", ".psd", ".ico", ".mpg", ".wmf", ".h5", ".fits"} & suffixes


def test_too_many_pixels_are_refused_before_any_is_decoded(monkeypatch):
  data = encode(Image.fromarray(PIXELS), "PNG")
  monkeypatch.setattr(decode, "MAX_PIXELS", 40 * 50)
  assert open_image(data).size == (50, 40)
  monkeypatch.setattr(decode, "MAX_PIXELS", 40 * 50 - 1)
  with pytest.raises(BadImageError, match="too large: 50x40 pixels, expected at most 1,999"):
    open_image(data[:60])


@pytest.mark.parametrize(
  ("error", "reason"),
  [
    (MemoryError(), "MemoryError"),
    (OSError("two\nlines \x1b[2J"), r"two\\nlines \\x1b\[2J"),
    (SyntaxError("broken PNG"), "broken PNG"),
  ],
)
def test_reasons_are_one_line_and_never_empty(monkeypatch, error, reason):
  def load(self):
    raise error

  monkeypatch.setattr(Image.Image, "load", load)
  with pytest.raises(BadImageError, match=f"not a readable image: {reason}$"):
    decode.load_rgb(Image.new("RGB", (4, 4)))


# --- Grey of more than 8 bits -------------------------------------------------------------

CLIPPED = {
  "16-bit.png": encode(Image.fromarray(DEEP), "PNG"),
  "16-bit.tif": encode(Image.fromarray(DEEP), "TIFF"),
  "16-bit.jp2": encode(Image.fromarray(DEEP), "JPEG2000"),
  "16-bit.pgm": encode(Image.fromarray(DEEP), "PPM"),
  "32-bit.tif": encode(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
  "float.tif": encode(Image.fromarray((DEEP / 2**16).astype(np.float32)), "TIFF"),
  "float.pfm": encode(Image.fromarray((DEEP / 2**16).astype(np.float32)), "PPM"),
}
WHOLE = {
  "grey.png": encode(Image.fromarray(PIXELS[..., 0]), "PNG"),
  "black and white.png": encode(Image.fromarray(PIXELS[..., 0] > 99), "PNG"),
  "palette.gif": encode(Image.fromarray(PIXELS).quantize(9), "GIF"),
  "cmyk.jpg": encode(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"),
  "transparent.png": encode(Image.fromarray(PIXELS[..., 0]).convert("LA"), "PNG"),
}


@pytest.mark.parametrize("name", [*CLIPPED, *WHOLE])
def test_clipped_images_are_recognised_and_decoded_as_before(name):
  data = (CLIPPED | WHOLE)[name]
  assert is_clipped(open_image(data)) == (name in CLIPPED)
  expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
  np.testing.assert_array_equal(decode_image(data), expected)
  if name in CLIPPED:
    assert np.isin(expected, [0, 255]).mean() > 0.9


class Files:
  """A source of named files, of one class; picklable."""

  class_names = ("one",)

  def __init__(self, prefix, files):
    self.prefix, self.files = prefix, files

  def __len__(self):
    return len(self.files)

  def __getitem__(self, index):
    name, data = list(self.files.items())[index]
    return Record(data, 0, f"{self.prefix}/{name}")


def warnings_of(caplog):
  return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_names_the_first_clipped_image_once(caplog, tmp_path, workers):
  """However many batches, evaluations and processes there are."""
  source = Files(tmp_path / "new\nline", {**WHOLE, **CLIPPED})
  reading = Reading(threads=1, prefetch=1, workers=workers)
  for _ in range(2):
    for batch in eval_batches(source, EvalTransform(33), share=Share(2), reading=reading):
      assert batch.keys() == {"image", "label"}
  [warning] = warnings_of(caplog)
  assert warning.startswith(f"{tmp_path}/new\\nline/16-bit.png is a grey image of more")


def test_training_says_it_too_and_trains_on(caplog, tmp_path):
  source = Files(tmp_path, CLIPPED)
  batches = train_batches(
    source,
    TrainTransform(image_size=33),
    seed=0,
    share=Share(4),
    first_batch=0,
    num_batches=6,
    reading=Reading(threads=0),
  )
  assert [sorted(batch) for batch in batches] == 6 * [["bad", "image", "label"]]
  [warning] = warnings_of(caplog)
  assert f"{tmp_path}/" in warning and "convert such images to 8 bits" in warning


def test_nothing_is_said_of_other_images(caplog, tmp_path):
  source = Files(tmp_path, WHOLE)
  list(eval_batches(source, EvalTransform(33), share=Share(3), reading=Reading()))
  assert not warnings_of(caplog)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_mutated_files_are_images_or_bad_images(format):
  """Bytes changed, cut out and repeated, in files of every format and several modes."""
  rng = random.Random(0)
  small = Image.fromarray(PIXELS)
  modes = ("RGB", "L") if format in ("JPEG", "PPM", "AVIF") else ("RGB", "L", "RGBA")
  files = [encode(small.convert(mode), format) for mode in modes]
  transform = EvalTransform(33)
  for i in range(600):
    data = bytearray(files[i % len(files)])
    for _ in range(rng.choice([1, 1, 3, 10])):
      at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(100, len(data)))
      kind = rng.randrange(4)
      if kind == 0:
        del data[at : at + rng.randrange(1, 9)]
      elif kind == 1:
        data[at:at] = data[at : at + rng.randrange(1, 9)]
      else:
        data[at : at + 1] = bytes([rng.choice([0, 1, 127, 255, rng.randrange(256)])])
      data = data or bytearray(1)
    with contextlib.suppress(BadImageError), warnings.catch_warnings():
      warnings.simplefilter("ignore")  # Pillow's, of odd metadata
      assert transform(decode_image(bytes(data))).shape == (33, 33, 3)
