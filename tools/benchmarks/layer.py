"""Token mixing layers alone, by the size of the grid: the paper's figure of efficiency.

By default the global filter, self-attention, a spatial MLP and a 3x3 depthwise convolution, in
inference; `copy` reads and writes the tokens once. The columns:

  operations_g          of one image, in G, by the convention `official` of benchmark.py flops
  least_ms, median_ms   of a call; other programs on the machine disturb the shortest least
  spread                the distance of the quartiles over the median
  peak_mb               what the first call added to the memory in use at its peak, its result
                        included, as measured (on an accelerator, if more than all before)
  temporary_mb          what XLA plans to hold besides tokens, weights and results, without what
                        libraries hold that it calls
  of_copy               the shortest time over that of the copy
  exponent              d log(shortest time) / d log(tokens), fitted from 28x28 up

A layer is left out on grids where it would take longer than --limit, or its largest array (the
kernel of the spatial MLP, the scores of attention) more memory than --memory.

  python tools/benchmark.py layer --figure layer.svg     # the figure needs matplotlib
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import _measure
from benchmarks._memory import added_peak
from benchmarks._operations import CONVENTIONS, RULES, of_mixer
from flax import nnx

from gfnet_jax.files import make_directory
from gfnet_jax.models.attention import count_heads
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.mixers import MIXERS
from gfnet_jax.names import look_up
from gfnet_jax.views.pyplot import check_format, import_pyplot, save_figure

FIT_FROM = 28 * 28  # tokens; below, fixed costs bend the line
LABELS = {
  "global-filter": "global filter",
  "attention": "self-attention",
  "spatial-mlp": "spatial MLP",
  "conv3": "3x3 depthwise convolution",
}


class Layer(NamedTuple):
  """A layer compiled for a grid.

  Attributes:
    call: computes it.
    temporary_bytes: as XLA plans; None where it does not tell.
  """

  call: Callable[[], jax.Array]
  temporary_bytes: int | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--sides", nargs="+", type=_measure.count, default=[14, 28, 56, 112, 224])
  parser.add_argument("--layers", nargs="+", default=list(LABELS), metavar="MIXER")
  parser.add_argument("--width", type=_measure.count, default=384, help="channels")
  parser.add_argument("--batch-size", type=_measure.count, default=1)
  parser.add_argument("--rounds", type=_measure.count, default=7, help="turns of every layer")
  parser.add_argument("--limit", type=float, default=10, help="seconds per call, estimated")
  parser.add_argument("--memory", type=float, default=4, help="GB of a layer's largest array")
  parser.add_argument("--figure", type=Path, help="file of a plot, such as layer.svg")


def run(options: argparse.Namespace) -> None:
  for name in options.layers:
    look_up("layer", name, {name: MIXERS[name] for name in RULES})
  if options.figure:
    check_format(options.figure)
    pyplot = import_pyplot()
    make_directory(options.figure.parent)
  rows, seconds = [], {}
  for side in _measure.progress(sorted(options.sides), "grid"):
    layers = make_layers(side, seconds, options)
    peaks = {name: added_peak(layer.call) for name, layer in layers.items()}
    calls = {name: layer.call for name, layer in layers.items()}
    times = _measure.time_in_turns(calls, options.rounds, turn=0.02)
    for name, layer in layers.items():
      seconds.setdefault(name, {})[side**2] = min(times[name])
      low, median, high = _measure.quartiles_ms(times[name])
      least = 1e3 * min(times[name])
      row = {"layer": name, "grid": f"{side}x{side}", "operations_g": None}
      if name != "copy":
        operations = of_mixer(name, side**2, options.width)
        row["operations_g"] = CONVENTIONS["official"](operations) / 1e9
      row |= {"least_ms": least, "median_ms": median, "spread": (high - low) / median}
      row |= {"peak_mb": megabytes(peaks[name]), "temporary_mb": megabytes(layer.temporary_bytes)}
      row["of_copy"] = least / (1e3 * seconds["copy"][side**2])
      rows.append(row | {"exponent": exponent(seconds[name])})
  _measure.report("layer", rows, options)
  if options.figure:
    draw(pyplot, rows, options)


def make_layers(
  side: int, before: dict[str, dict[int, float]], options: argparse.Namespace
) -> dict[str, Layer]:
  """Those that fit on this grid, with what plans the least memory first; first of all a copy."""
  shape = (options.batch_size, side, side, options.width)
  tokens = jax.random.normal(jax.random.key(0), shape)
  layers = {}
  for name in options.layers:
    # As if the cost were quadratic: never too low.
    known = before.get(name, {})
    estimate = max((time * (side**2 / n) ** 2 for n, time in list(known.items())[-1:]), default=0.0)
    if estimate <= options.limit and largest_array_gb(name, shape) <= options.memory:
      layers[name] = compile_layer(*make_mixer(name, side, options.width), tokens)
  ordered = sorted(layers.items(), key=lambda item: item[1].temporary_bytes or 0)
  return {"copy": compile_layer(lambda _, tokens: 2 * tokens, {}, tokens), **dict(ordered)}


def make_mixer(name: str, side: int, width: int) -> tuple[Callable, dict[str, jax.Array]]:
  """A mixer as a function of its parameters and tokens, and parameters."""
  mixer = MIXERS[name](width, side, side, backend="auto", dtype=jnp.float32, rngs=nnx.Rngs(0))
  structure, params = split(mixer)
  return lambda params, tokens: merge(structure, params)(tokens), params


def compile_layer(
  function: Callable[[dict[str, jax.Array], jax.Array], jax.Array],
  params: dict[str, jax.Array],
  tokens: jax.Array,
) -> Layer:
  compiled = jax.jit(function).lower(params, tokens).compile()
  memory = compiled.memory_analysis()
  return Layer(functools.partial(compiled, params, tokens), memory and memory.temp_size_in_bytes)


def largest_array_gb(name: str, shape: tuple[int, int, int, int]) -> float:
  batch, height, width, dim = shape
  copies = {"spatial-mlp": 1, "attention": batch * count_heads(dim)}.get(name, 0)
  return 4e-9 * copies * (height * width) ** 2


def megabytes(count: int | None) -> float | None:
  return None if count is None else count / 1e6


def exponent(seconds: dict[int, float]) -> float | None:
  """The slope of log(time) over log(tokens) by least squares, if there are two points."""
  points = [(n, time) for n, time in seconds.items() if n >= FIT_FROM]
  if len(points) < 2:
    return None
  return float(np.polyfit(*np.log(np.array(points)).T, 1)[0])


def draw(pyplot, rows: list[dict[str, object]], options: argparse.Namespace) -> None:
  """Operations, time and memory over tokens, all logarithmic, in three panels."""
  memory = "peak_mb" if any(row["peak_mb"] for row in rows) else "temporary_mb"
  panels = {
    "operations_g": "operations per image, G",
    "least_ms": f"milliseconds, batch {options.batch_size}",
    memory: f"{memory.partition('_')[0]} memory in MB, batch {options.batch_size}",
  }
  figure, all_axes = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
  sides = sorted(options.sides)
  for axes, (column, label) in zip(all_axes, panels.items(), strict=True):
    for name in ("copy", *options.layers):
      points = [
        (int(row["grid"].partition("x")[0]) ** 2, row[column])
        for row in rows
        if row["layer"] == name and row[column]
      ]
      style = {"color": "black", "linestyle": ":"} if name == "copy" else {"marker": "o"}
      name = "reading and writing once" if name == "copy" else LABELS.get(name, name)
      axes.plot(*zip(*points, strict=True) if points else ((), ()), label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel="tokens N", ylabel=label)
    axes.set_xticks([side**2 for side in sides], [f"{side}x{side}" for side in sides])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
  lines = all_axes[0].get_legend_handles_labels()
  figure.legend(*lines, loc="outside lower center", ncols=len(options.layers) + 1, frameon=False)
  machine = _measure.machine()
  where = machine["device"] if machine["platform"] != "cpu" else machine["processor"]
  figure.suptitle(f"Mixing layers, width {options.width}, float32; {where}")
  save_figure(figure, options.figure)
