"""The pictures of a report: a confusion matrix, and a sheet of images with captions."""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gfnet_jax.text import printable

Colour = tuple[int, int, int]
Line = str | tuple[str, str]
WHITE, BLACK, GREY = (255, 255, 255), (20, 20, 20), (200, 200, 200)
RIGHT, WRONG = (31, 90, 160), (200, 70, 30)  # where all images of a row are
TEXT, NAME_WIDTH, GAP = 14, 150, 8  # pixels
CELL, SMALLEST_CELL, MATRIX = 56, 30, 900  # sides of a cell, and of the matrix at most
THUMBNAIL, PER_ROW = 180, 5
PIXELATED = 4  # times smaller than a thumbnail, below which the pixels of an image are shown


def draw_confusion(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
  """Draws a confusion matrix.

  Args:
    counts: (rows, columns), integer: how many images of a class (row) are taken for one (column).
      Class i is column i; there may be more columns, for the others.
    rows: names of the true classes.
    columns: names of the predicted ones.

  Returns:
    An image of mode RGB. The darkness of a cell is its share of the row.
  """
  font = _font(TEXT)
  cell = max(SMALLEST_CELL, min(CELL, MATRIX // len(columns)))
  left = TEXT + 4 * GAP + _widest(rows, font)
  top = TEXT + 3 * GAP + _widest(columns, font)
  size = (left + cell * len(columns) + 2 * GAP, top + cell * len(rows) + 2 * GAP)
  image = Image.new("RGB", size, WHITE)
  draw = ImageDraw.Draw(image)
  draw.text((left, GAP), "predicted class", BLACK, font)
  _draw_upright(image, (GAP, top), "true class", font)
  for i, name in enumerate(rows):
    middle = top + cell * i + cell // 2
    draw.text((left - GAP, middle), _fitted(name, font), BLACK, font, anchor="rm")
  for j, name in enumerate(columns):
    _draw_upright(image, (left + cell * j + (cell - TEXT) // 2, top - GAP), _fitted(name, font))
  totals = counts.sum(axis=1)
  for i, j in np.ndindex(counts.shape):
    box = (left + cell * j, top + cell * i, left + cell * (j + 1), top + cell * (i + 1))
    share = counts[i, j] / totals[i] if counts[i, j] else 0.0
    draw.rectangle(box, _blend(RIGHT if i == j else WRONG, share), GREY)
    if counts[i, j]:
      middle, colour = (box[0] + cell // 2, box[1] + cell // 2), WHITE if share > 0.5 else BLACK
      draw.text(middle, f"{counts[i, j]}", colour, _font(TEXT if cell >= CELL else 11), anchor="mm")
  return image


def draw_sheet(
  images: Sequence[Image.Image], captions: Sequence[Sequence[Line]], per_row: int = PER_ROW
) -> Image.Image:
  """Draws images as thumbnails, each above its caption.

  Args:
    images: mode RGB, of any size.
    captions: lines of each; of a line in two parts, the first loses its end if it is too long.
    per_row: thumbnails in a row.

  Returns:
    An image of mode RGB.
  """
  font, line = _font(TEXT), TEXT + 4
  lines = max(map(len, captions))
  columns = min(per_row, len(images))
  width, height = THUMBNAIL + GAP, THUMBNAIL + lines * line + 2 * GAP
  sheet = Image.new(
    "RGB", (columns * width + GAP, -(-len(images) // columns) * height + GAP), WHITE
  )
  draw = ImageDraw.Draw(sheet)
  for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
    x, y = GAP + i % columns * width, GAP + i // columns * height
    thumbnail = _thumbnail(image)
    sheet.paste(
      thumbnail, (x + (THUMBNAIL - thumbnail.width) // 2, y + THUMBNAIL - thumbnail.height)
    )
    for j, text in enumerate(caption):
      start, end = (text, "") if isinstance(text, str) else text
      fitted = _fitted(start, font, THUMBNAIL - font.getlength(end)) + end
      draw.text((x, y + THUMBNAIL + GAP // 2 + j * line), fitted, BLACK, font)
  return sheet


def _thumbnail(image: Image.Image) -> Image.Image:
  scale = THUMBNAIL / max(image.size)
  size = tuple(max(1, round(side * scale)) for side in image.size)
  tiny = scale > PIXELATED
  return image.resize(size, Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS)


def _draw_upright(
  image: Image.Image, corner: tuple[int, int], text: str, font: ImageFont.ImageFont | None = None
) -> None:
  """Draws text that runs upwards; from the corner down if a font is given, else up to it."""
  used = font or _font(TEXT)
  strip = Image.new("RGB", (int(used.getlength(text)) + 2, TEXT + 4), WHITE)
  ImageDraw.Draw(strip).text((0, 0), text, BLACK, used)
  upright = strip.transpose(Image.Transpose.ROTATE_90)
  image.paste(upright, (corner[0], corner[1] if font else corner[1] - upright.height))


def _fitted(text: str, font: ImageFont.ImageFont, width: float = NAME_WIDTH) -> str:
  """Text that is not wider than so many pixels: what is too long loses its end."""
  text = printable(text)
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(text + "...") > width:
    text = text[:-1]
  return text + "..."


def _widest(names: Sequence[str], font: ImageFont.ImageFont) -> int:
  return max(int(font.getlength(_fitted(name, font))) + 2 for name in names)


def _blend(colour: Colour, share: float) -> Colour:
  return tuple(round(255 + (value - 255) * share) for value in colour)


@functools.cache
def _font(size: int) -> ImageFont.ImageFont:
  """The font that comes with Pillow: Latin letters; each other character is a box."""
  return ImageFont.load_default(size)
