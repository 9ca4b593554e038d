"""Draws loss, accuracy, learning rate and speed of training runs on one sheet.

  gfnet-jax plot runs/digits runs/wide --output curves.png

Each run is a work directory of training, or its metrics.jsonl; one that is still running is drawn
as far as it is. A colour is a run, a line style a metric. --output NAME.svg for a drawing.
"""

import sys
from pathlib import Path

from gfnet_jax.command_line import ArgumentParser, program


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog=program("plot"), description=__doc__)
  parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="work directories")
  parser.add_argument(
    "--output", type=Path, default="curves.png", help="PNG or SVG (default: curves.png)"
  )
  parser.add_argument("--steps", action="store_true", help="over steps in place of epochs")
  options = parser.parse_args(arguments)

  from gfnet_jax.text import printable
  from gfnet_jax.views.curves import draw_curves, read_curves

  runs = [read_curves(path) for path in options.runs]
  for warning in (warning for curves in runs for warning in curves.warnings):
    print(f"warning: {printable(warning, limit=1000)}", file=sys.stderr, flush=True)
  draw_curves(runs, options.output, by_step=options.steps)
  print(f"wrote {printable(options.output, limit=1000)}", flush=True)
