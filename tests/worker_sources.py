"""Sources to read in worker processes, which need not import the tests for them."""

import io
import os
import random
import signal

import numpy as np
from PIL import Image

from gfnet_jax.data.decode import load_rgb
from gfnet_jax.data.sources.records import BadRecordError, Record


class NumberedSource:
  """Image i is a 4x4 PNG whose every pixel is i, its label i modulo 10."""

  def __init__(self, count: int):
    self.count = count
    self.class_names = [str(i) for i in range(10)]

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, i: int) -> Record:
    png = io.BytesIO()
    Image.new("RGB", (4, 4), (i, i, i)).save(png, "PNG")
    return Record(png.getvalue(), i % 10, f"numbered[{i}]")


class NoisyTransform:
  """Leaves the number in the first channel and draws the others."""

  def __call__(self, image: Image.Image, rng: random.Random) -> np.ndarray:
    pixels = np.array(load_rgb(image))
    pixels[..., 1:] = rng.randrange(256)
    return pixels


class DamagedSource(NumberedSource):
  """Some images cannot be read, each in another way."""

  damaged: tuple[int, ...] = (3, 17, 18, 30, 31)

  def __getitem__(self, i: int) -> Record:
    record = super().__getitem__(i)
    if i not in self.damaged:
      return record
    kind = self.damaged.index(i) % 5
    if kind == 4:
      raise BadRecordError(f"{record.name} has a wrong checksum")
    bomb = b"P6 60000 60000 255 "  # the header of 10 gigabytes of pixels
    return record._replace(image=[b"", b"not an image", record.image[:-30], bomb][kind])


class DeadlySource(NumberedSource):
  """Image 13 kills the process that reads it."""

  def __getitem__(self, i: int) -> Record:
    if i == 13:
      os.kill(os.getpid(), signal.SIGKILL)
    return super().__getitem__(i)


class Shades:
  """A source: grey images of `shades` levels, so many per class; the split is a list of classes."""

  def __init__(self, data, split):
    self.class_names = ["dark", "light"]
    self.items = [
      (shade, label)
      for label, name in enumerate(self.class_names)
      for shade in data.shades[name]
      if name in split.split("+")
    ]

  def __len__(self):
    return len(self.items)

  def __getitem__(self, index):
    shade, label = self.items[index]
    png = io.BytesIO()
    Image.new("L", (8, 8), shade).save(png, "PNG")
    return Record(png.getvalue(), label, f"shade {shade}")
