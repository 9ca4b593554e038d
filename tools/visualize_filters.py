"""Draws the global filters of a trained or converted model.

Into the folder filters/:

  python tools/visualize_filters.py runs/gfnet-xs --output filters

filters.png: the effective magnitudes in rows of layers and columns of channels, as in the paper,
and the kernels beside them; a figure for each stage of a hierarchical model. energy.png: how
strongly each layer passes low and high frequencies. filters.html: all filters, one at a time, in a
browser, from this one file.

Other channels and layers:

  python tools/visualize_filters.py runs/gfnet-xs --layers 0 5 11 --channels $(seq 24 47)

The figures need matplotlib; --page-only does without.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project need not be installed

from gfnet_jax.command_line import ArgumentParser, run


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog="tools/visualize_filters.py", description=__doc__)
  parser.add_argument(
    "checkpoint", help="of train.py or convert_torch_weights.py, or an official file of weights"
  )
  parser.add_argument(
    "--output", type=Path, default="filters", help="folder for what is drawn (default: filters)"
  )
  parser.add_argument(
    "--layers", type=int, nargs="+", metavar="N", help="numbers from 0 (default: all)"
  )
  parser.add_argument(
    "--channels",
    type=int,
    nargs="+",
    metavar="N",
    help="columns of the figures, from 0 (default: the first 24); the page has all",
  )
  parser.add_argument("--format", choices=("png", "svg"), default="png", help="of the figures")
  parser.add_argument("--page-only", action="store_true", help="draw only the page")
  parser.add_argument("--which", default="last", help="last, best or a step (default: last)")
  parser.add_argument("--ema", action="store_true", help="take the averaged weights")
  options = parser.parse_args(arguments)

  from gfnet_jax import startup

  startup.start()
  startup.check_devices()
  from gfnet_jax.views.visualize import visualize_filters

  for path in visualize_filters(
    options.checkpoint,
    options.output,
    layers=options.layers,
    channels=options.channels,
    suffix=options.format,
    page_only=options.page_only,
    which=options.which,
    ema=options.ema,
  ):
    print(f"wrote {path}", flush=True)


if __name__ == "__main__":
  sys.exit(run(main))
