"""Draws the global filters of a trained or converted model.

Into the folder filters/:

  gfnet-jax filters runs/gfnet-xs --output filters

filters.png: the effective magnitudes in rows of layers and columns of channels, as in the paper,
and the kernels beside them; a figure for each stage of a hierarchical model. energy.png: how
strongly each layer passes low and high frequencies. filters.html: all filters, one at a time, in a
browser, from this one file.

Other channels and layers:

  gfnet-jax filters runs/gfnet-xs --layers 0 5 11 --channels $(seq 24 47)

The figures need matplotlib; --page-only does without.
"""

from pathlib import Path

from gfnet_jax.command_line import ArgumentParser, program


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog=program("filters"), description=__doc__)
  parser.add_argument(
    "checkpoint", help="a work directory of training, a checkpoint, an official file or its name"
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
  from gfnet_jax.text import printable
  from gfnet_jax.views.visualize import visualize_filters

  visualize_filters(
    options.checkpoint,
    options.output,
    layers=options.layers,
    channels=options.channels,
    suffix=options.format,
    page_only=options.page_only,
    which=options.which,
    ema=options.ema,
    on_file=lambda path: print(f"wrote {printable(path, limit=1000)}", flush=True),
  )
