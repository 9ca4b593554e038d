"""Masks in colours: files whose values are classes and whose palette shows them."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gfnet_jax.data.segmentation.transforms import IGNORED
from gfnet_jax.text import printable

GOLDEN = (5**0.5 - 1) / 2  # turns of the hue by this stay apart, however many there are
SWATCH, LINE, COLUMN = 14, 20, 190  # pixels of a legend


def palette() -> list[tuple[int, int, int]]:
  """256 colours, the same for every model: black for class 0, white for IGNORED."""
  colours = [(0, 0, 0)]
  for i in range(1, IGNORED):
    saturation, value = ((0.75, 0.95), (0.5, 0.75), (0.95, 0.6))[i % 3]
    red, green, blue = colorsys.hsv_to_rgb(i * GOLDEN % 1, saturation, value)
    colours.append((round(255 * red), round(255 * green), round(255 * blue)))
  return [*colours, (255, 255, 255)]


def coloured(labels: np.ndarray) -> Image.Image:
  """A mask as an image with a palette: its values are the classes, its colours those of `palette`.

  Args:
    labels: (height, width), uint8; IGNORED for no class.
  """
  image = Image.fromarray(labels)  # mode L
  image.putpalette([value for colour in palette() for value in colour])  # then P
  return image


def legend(class_names: Sequence[str], values: Sequence[int], width: int) -> Image.Image:
  """The names of some classes beside their colours, mode RGB.

  Args:
    class_names: of all classes.
    values: of those to show.
    width: of the result, in pixels.
  """
  columns = max(1, width // COLUMN)
  image = Image.new("RGB", (width, LINE * -(-len(values) // columns) + 8), (255, 255, 255))
  draw, font, colours = ImageDraw.Draw(image), ImageFont.load_default(13), palette()
  for i, value in enumerate(values):
    x, y = 8 + i % columns * COLUMN, 4 + i // columns * LINE
    draw.rectangle((x, y, x + SWATCH, y + SWATCH), colours[value], (120, 120, 120))
    draw.text((x + SWATCH + 6, y - 1), printable(class_names[value], 24), (20, 20, 20), font)
  return image
