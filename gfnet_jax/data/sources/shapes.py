"""Generated images of shapes on a patterned ground, with their masks: nothing is downloaded.

Colours say nothing of the class: what a pixel belongs to shows only in the outline around it.
"""

import io
import math

import ml_collections
import numpy as np
from PIL import Image, ImageDraw

from gfnet_jax.data.sources.records import MaskedRecord
from gfnet_jax.errors import UserError

CLASSES = ("ground", "disc", "square", "triangle", "ring")
SPLITS = {"train": 1000, "test": 100}  # images
SIZES = ((80, 80), (72, 108), (108, 72))  # (height, width), in pixels
LEAST_CONTRAST = 90  # between a shape and the ground, as the Euclidean distance of two colours


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

  class_names = list(CLASSES)
  first_value = 0

  def __init__(self, split: str):
    if split not in SPLITS:
      raise UserError(f"the split is {split!r}, expected {' or '.join(SPLITS)}")
    self._split = split

  def __len__(self) -> int:
    return SPLITS[self._split]

  def record_names(self) -> list[bytes]:
    """A name for every image; see `fingerprint`."""
    return [f"{self._split} {i}".encode() for i in range(len(self))]

  def __getitem__(self, index: int) -> MaskedRecord:
    image, mask = draw(np.random.default_rng([list(SPLITS).index(self._split), index]))
    return MaskedRecord(_png(image), _png(mask), f"{self._split} image {index}")

  def sizes(self) -> list[tuple[int, int]]:
    """(height, width) of every image, in pixels."""
    seeds = ([list(SPLITS).index(self._split), i] for i in range(len(self)))
    return [_draw_size(np.random.default_rng(seed)) for seed in seeds]


def open_shapes(data: ml_collections.ConfigDict, split: str) -> ShapesSource:
  """The source 'shapes'; reads no field of the section."""
  del data
  return ShapesSource(split)


def draw(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
  """Draws one image and its mask.

  Returns:
    An image of mode RGB, and one of mode L and of the same size with a value of CLASSES per pixel.
  """
  height, width = _draw_size(rng)
  ground = rng.integers(0, 256, 3)
  rows, columns = np.mgrid[:height, :width]
  angle, period = rng.uniform(0, math.pi), rng.uniform(8, 40)
  wave = np.sin(2 * math.pi / period * (math.cos(angle) * rows + math.sin(angle) * columns))
  pixels = ground + rng.uniform(0, 25) * wave[..., None]
  mask = Image.new("L", (width, height), 0)
  for _ in range(rng.integers(2, 5)):
    value = int(rng.integers(1, len(CLASSES)))
    shape = Image.new("1", (width, height), 0)
    radius = rng.uniform(10, 20)
    centre = rng.uniform(0.6 * radius, width - 0.6 * radius), rng.uniform(0, height)
    _draw_shape(ImageDraw.Draw(shape), CLASSES[value], centre, radius, rng.uniform(0, 360))
    colour = rng.integers(0, 256, 3)
    while np.linalg.norm(colour - ground) < LEAST_CONTRAST:
      colour = rng.integers(0, 256, 3)
    pixels[np.array(shape)] = colour
    mask.paste(value, mask=shape)
  noisy = pixels + rng.normal(0, 8, pixels.shape)
  return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), mask


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
  """What `draw` draws first."""
  return SIZES[int(rng.integers(len(SIZES)))]


def _draw_shape(
  canvas: ImageDraw.ImageDraw, name: str, centre: tuple[float, float], radius: float, angle: float
) -> None:
  if name in ("square", "triangle"):
    corners = 4 if name == "square" else 3
    canvas.regular_polygon((*centre, radius), corners, rotation=angle, fill=1)
    return
  for size, fill in ((radius, 1), *(((0.5 * radius, 0),) if name == "ring" else ())):
    box = (centre[0] - size, centre[1] - size, centre[0] + size, centre[1] + size)
    canvas.ellipse(box, fill=fill)


def _png(image: Image.Image) -> bytes:
  file = io.BytesIO()
  image.save(file, "PNG", compress_level=1)
  return file.getvalue()
