"""Generated photos in a folder per class: shapes of any colour, size and place on a background."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "cross", "stripes")


def write_photos(root: Path, count: int, size: tuple[int, int] = (96, 80), seed: int = 0) -> Path:
  """Writes JPEG files root/SHAPE/0000.jpg and so on, `count` in all; returns root."""
  rng = np.random.default_rng(seed)
  for i in range(count):
    shape = SHAPES[i % len(SHAPES)]
    path = root / shape / f"{i:04d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_photo(shape, size, rng).save(path, quality=90)
  return root


def draw_photo(shape: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
  """A noisy picture of a shape; its colour tells nothing of its class."""
  width, height = size
  ground, colour = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
  if abs(int(ground.sum()) - int(colour.sum())) < 150:
    colour = 255 - ground
  image = Image.new("RGB", size, tuple(ground.tolist()))
  draw, paint = ImageDraw.Draw(image), tuple(colour.tolist())
  radius = rng.uniform(0.22, 0.4) * min(size)
  x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
  box, arm = (x - radius, y - radius, x + radius, y + radius), radius / 4
  if shape == "circle":
    draw.ellipse(box, paint)
  elif shape == "cross":
    draw.rectangle((x - radius, y - arm, x + radius, y + arm), paint)
    draw.rectangle((x - arm, y - radius, x + arm, y + radius), paint)
  else:
    for left in np.arange(x - radius, x + radius, radius / 2):
      draw.rectangle((left, y - radius, left + radius / 4, y + radius), paint)
  noise = rng.normal(0, 12, (height, width, 3))
  return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
