"""Generated images of bright shapes on a dark ground, with their masks: nothing is downloaded.

Colours tell shapes from the ground, but not from each other: that shows in their outlines alone.
"""

import io
import math

import ml_collections
import numpy as np
from PIL import Image, ImageDraw

from gfnet_jax.data.sources.records import MaskedRecord, required_name
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

CLASSES = ("ground", "disc", "triangle", "ring", "bar")
SPLITS = {"train": 1000, "test": 100}  # images
SIZES = ((72, 108), (108, 72))  # (height, width), in pixels
DARK, BRIGHT = (0, 110), (140, 256)  # values of the ground, and of shapes


class ShapesSource:
  """Image i of a split is drawn from the split's name and i alone.

  Args:
    split: a name in SPLITS.

  Attributes:
    class_names: those of CLASSES, whose values in a mask are 0, 1, ...
    first_value: 0.

  Raises:
    UserError: for another split.
  """

  def __init__(self, split: str):
    if split not in SPLITS:
      raise UserError(f"the split is {split!r}, expected {' or '.join(SPLITS)}")
    self._split, self.class_names, self.first_value = split, list(CLASSES), 0

  def __len__(self) -> int:
    return SPLITS[self._split]

  def record_names(self) -> list[bytes]:
    """A name for every image; see `fingerprint`."""
    return [f"{self._split} {i}".encode() for i in range(len(self))]

  def __getitem__(self, index: int) -> MaskedRecord:
    image, mask = draw(np.random.default_rng([list(SPLITS).index(self._split), index]))
    return MaskedRecord(_file_of(image), _file_of(mask), f"{self._split} image {index}")

  def sizes(self) -> list[tuple[int, int]]:
    """(height, width) of every image, in pixels."""
    seeds = ([list(SPLITS).index(self._split), i] for i in range(len(self)))
    return [_draw_size(np.random.default_rng(seed)) for seed in seeds]


def open_shapes(data: ml_collections.ConfigDict, split: str) -> ShapesSource:
  """The source 'shapes'.

  Args:
    data: section of a config, whose name is shapes.
    split: a name in SPLITS.

  Raises:
    UserError: for another name, which may be a directory that would not be read; another split.
  """
  if (name := required_name(data)) != "shapes":
    raise UserError(
      f"data.name is {printable(name, 400)!r}, expected 'shapes', which are generated; for a "
      "directory of images and masks set data.source=masks, or begin with "
      "configs/segmentation.py:gfnet-h-ti"
    )
  return ShapesSource(split)


def draw(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
  """Draws one image and its mask.

  Returns:
    An image of mode RGB, and one of mode L and of the same size with a value of CLASSES per pixel.
  """
  height, width = _draw_size(rng)
  rows, columns = np.mgrid[:height, :width].astype(np.float32)
  angle, period = rng.uniform(0, math.pi), rng.uniform(8, 40)
  wave = np.sin(2 * math.pi / period * (math.cos(angle) * rows + math.sin(angle) * columns))
  pixels = (
    rng.integers(*DARK, 3).astype(np.float32) + np.float32(rng.uniform(0, 25)) * wave[..., None]
  )
  mask = Image.new("L", (width, height), 0)
  for _ in range(rng.integers(2, 5)):
    value = int(rng.integers(1, len(CLASSES)))
    shape, radius = Image.new("1", (width, height), 0), rng.uniform(14, 24)
    x, y = (rng.uniform(0.6 * radius, side - 0.6 * radius) for side in (width, height))
    _draw_shape(ImageDraw.Draw(shape), CLASSES[value], (x, y), radius, rng.uniform(0, 360))
    pixels[np.array(shape)] = rng.integers(*BRIGHT, 3)
    mask.paste(value, mask=shape)
  pixels += 8 * rng.standard_normal(pixels.shape, np.float32)
  return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), mask


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
  """What `draw` draws first."""
  return SIZES[int(rng.integers(len(SIZES)))]


def _draw_shape(
  canvas: ImageDraw.ImageDraw, name: str, centre: tuple[float, float], radius: float, angle: float
) -> None:
  if name == "triangle":
    canvas.regular_polygon((*centre, radius), 3, rotation=angle, fill=1)
    return
  if name == "bar":
    x, y = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
    ends = (centre[0] - x, centre[1] - y, centre[0] + x, centre[1] + y)
    canvas.line(ends, fill=1, width=round(0.7 * radius))
    return
  for size, fill in ((radius, 1), *(((0.5 * radius, 0),) if name == "ring" else ())):
    box = (centre[0] - size, centre[1] - size, centre[0] + size, centre[1] + size)
    canvas.ellipse(box, fill=fill)


def _file_of(image: Image.Image) -> bytes:
  file = io.BytesIO()
  image.save(file, "PPM")  # not compressed: fast to write and to read
  return file.getvalue()
