"""Four domains of handwritten digits, made from the scans of the data set digits.

Every scan belongs to one domain only. So nothing that is seen in training, in whatever form, is in
the domain that is held out.
"""

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from gfnet_jax.data.decode import BadImageError, decode_image
from gfnet_jax.data.sources.records import BadRecordError, Record, Source
from gfnet_jax.data.sources.tfds import TfdsSource

NOISE = 64.0  # standard deviation, of 255
VALIDATION_EVERY = 10  # scans of a domain


def _noised(image: Image.Image, index: int) -> Image.Image:
  noise = np.random.default_rng(index).normal(0.0, NOISE, (image.height, image.width))
  return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).round().astype(np.uint8))


# From a scan, grey, and its index to the image.
DOMAINS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
  "rotated": lambda image, index: image.rotate(30, Image.Resampling.BILINEAR),
  "inverted": lambda image, index: ImageOps.invert(image),
  "blurred": lambda image, index: image.filter(ImageFilter.GaussianBlur(1)),
  "noised": _noised,
}


class DigitDomain:
  """Some scans of one domain, as PNG files.

  Args:
    digits: all scans.
    domain: one of DOMAINS.
    indices: (images,), of the scans to take.
  """

  def __init__(self, digits: Source, domain: str, indices: np.ndarray):
    self._digits, self._domain, self._indices = digits, domain, indices
    self.class_names = digits.class_names

  def __len__(self) -> int:
    return len(self._indices)

  def record_names(self) -> Iterator[bytes]:
    """Those of the scans, and which ones are taken; see `fingerprint`."""
    yield from self._digits.record_names()
    yield f"{self._domain} {self._indices.tolist()}".encode()

  def __getitem__(self, index: int) -> Record:
    scan = int(self._indices[index])
    record = self._digits[scan]
    name = f"{record.name} {self._domain}"
    try:
      image = decode_image(record.image).convert("L")
    except BadImageError as error:
      raise BadRecordError(f"{name} is {error}") from error
    png = io.BytesIO()
    DOMAINS[self._domain](image, scan).save(png, "PNG")
    return Record(png.getvalue(), record.label, name)


def open_digit_domain(domain: str, split: str, data_dir: str = "") -> DigitDomain:
  """The scans of a domain: a quarter of all, of which a tenth is for validation.

  Args:
    domain: one of DOMAINS.
    split: train or val, or test for all of both.
    data_dir: directory of all TFDS data sets; empty for TFDS's default.
  """
  digits = TfdsSource("digits", "train+test", data_dir)
  own = np.arange(list(DOMAINS).index(domain), len(digits), len(DOMAINS))
  validation = np.arange(len(own)) % VALIDATION_EVERY == VALIDATION_EVERY - 1
  kept = {"train": ~validation, "val": validation, "test": np.ones(len(own), bool)}[split]
  return DigitDomain(digits, domain, own[kept])
