"""Which rule of resizing keeps a model's accuracy at other image sizes?

  python tools/resize_rules.py                                # trains on handwritten digits first
  python tools/resize_rules.py --checkpoint runs/mine --sizes 160 224 320
  python tools/resize_rules.py --figure rules.svg             # with a plot; needs matplotlib

Evaluates one model at every size by every rule of gfnet_jax.resize, without training at that size,
and prints a table in Markdown: top-1 in percent. The images are the evaluation split of the data
that the model was trained on, each stretched or shrunk as a whole to the size (bicubic).

Without --checkpoint, a network of 8 x 8 tokens, each of a single pixel, is trained for 25 epochs
on the scans of 8 x 8 pixels, so that tokens mean the same at every size. What is trained is in
--output; the same command then only evaluates. Fields of the config are overridden as for train.py.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project need not be installed

from gfnet_jax.command_line import ArgumentParser, run

TRAINED = (
  "--config.model.patch_size=1",
  "--config.model.embed_dim=32",
  "--config.model.depth=2",
  "--config.num_epochs=25",
  "--config.optimizer.warmup_epochs=1",
  "--config.eval_every_epochs=25",
)
BATCH = 120  # images at once

Rows = dict[tuple[int, int], dict[str, float]]  # percent, by (height, width) and rule


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog="tools/resize_rules.py", description=__doc__)
  parser.add_argument("--checkpoint", type=Path, help="work directory of train.py")
  parser.add_argument(
    "--sizes",
    nargs="+",
    type=_size,
    default=[(5, 5), (6, 6), (8, 8), (11, 11), (16, 16), (8, 16)],
    metavar="PIXELS",
    help="sides, or HEIGHTxWIDTH (default: 5 6 8 11 16 8x16)",
  )
  parser.add_argument("--output", type=Path, default=Path("runs/resize_rules"))
  parser.add_argument("--figure", type=Path, help="file of a plot, such as rules.svg")
  options, overrides = parser.parse_known_args(arguments)
  if options.checkpoint and overrides:
    parser.error(f"{overrides[0]} changes the training, but --checkpoint is trained already")
  if options.figure and not any(height == width for height, width in options.sizes):
    parser.error("--figure shows square images, and none of --sizes is a square")

  import gfnet_jax
  from gfnet_jax import startup
  from gfnet_jax.config_files import read_config

  config = None if options.checkpoint else read_config("configs/digits.py", [*TRAINED, *overrides])
  startup.start()
  startup.check_devices()
  from gfnet_jax.files import make_directory_of
  from gfnet_jax.views.pyplot import check_format, import_pyplot

  if options.figure:  # before the work, not after
    check_format(options.figure)
    make_directory_of(options.figure)
    pyplot = import_pyplot()
  if config is not None and gfnet_jax.train(config, options.output) is None:
    return  # a signal stopped it
  saved = gfnet_jax.load_model(options.checkpoint or options.output)
  rows = measure(saved, options.sizes)
  print(markdown(rows, saved.model.image_size))
  if options.figure:
    draw(pyplot, rows, saved.model.image_size, options.figure)


def measure(saved, sizes: list[tuple[int, int]]) -> Rows:
  """Top-1 of a saved model on its evaluation split, at every size by every rule."""
  import numpy as np
  from PIL.Image import Resampling

  from gfnet_jax.data.decode import load_rgb, open_image
  from gfnet_jax.data.sources.open import open_source
  from gfnet_jax.inference.evaluate import data_section
  from gfnet_jax.models.fit import resize
  from gfnet_jax.models.resize import RULES

  section = data_section(saved)
  source = open_source(section, section.eval_split)
  records = [source[i] for i in range(len(source))]
  images = [load_rgb(open_image(record.image)) for record in records]
  labels = np.array([record.label for record in records])
  rows = {}
  for height, width in sizes:
    pixels = np.stack([image.resize((width, height), Resampling.BICUBIC) for image in images])
    rows[height, width] = {
      rule: 100
      * float((classify(resize(saved.model, (height, width), rule), pixels) == labels).mean())
      for rule in RULES
    }
  return rows


def classify(model, pixels):
  """The classes (n,) of images (n, height, width, 3), uint8."""
  import jax
  import numpy as np

  import gfnet_jax
  from gfnet_jax.models.functional import merge, split

  structure, params = split(model)
  call = jax.jit(lambda params, x: merge(structure, params)(gfnet_jax.normalize(x)).argmax(-1))
  return np.concatenate([call(params, pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)])


def markdown(rows: Rows, trained: tuple[int, int]) -> str:
  """The table; the size that the model was trained at is in bold."""
  rules = list(next(iter(rows.values())))
  lines = [
    f"| images | {' | '.join(f'`{rule}`' for rule in rules)} |",
    "|---" * (len(rules) + 1) + "|",
  ]
  for size, row in rows.items():
    name = " x ".join(map(str, size))
    name = f"**{name}**" if size == trained else name
    lines.append(f"| {name} | {' | '.join(f'{row[rule]:.1f}' for rule in rules)} |")
  return "\n".join(lines)


def draw(pyplot, rows: Rows, trained: tuple[int, int], path: Path) -> None:
  """A line for every rule over the sides of the square images, in pixels."""
  from gfnet_jax.views.pyplot import save_figure

  squares = sorted(size for size in rows if size[0] == size[1])
  figure, axes = pyplot.subplots(figsize=(6, 3), layout="constrained")
  for rule in rows[squares[0]]:
    axes.plot([side for side, _ in squares], [rows[s][rule] for s in squares], "o-", label=rule)
  if trained[0] == trained[1]:
    axes.axvline(trained[0], color="black", linestyle=":", label="trained at")
  axes.set_xlabel("side of the images in pixels, without training there")
  axes.set_ylabel("top-1 in percent")
  axes.grid(alpha=0.3)
  axes.legend()
  save_figure(figure, path)


def _size(text: str) -> tuple[int, int]:
  height, by, width = text.partition("x")
  sides = (height, width if by else height)
  if not all(re.fullmatch("[1-9][0-9]{0,3}", side) for side in sides):
    raise argparse.ArgumentTypeError(f"{text!r} is not a size, expected such as 224 or 224x320")
  return int(sides[0]), int(sides[1])


if __name__ == "__main__":
  sys.exit(run(main))
