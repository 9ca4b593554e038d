"""Token mixing layers alone, by the size of the grid: the paper's figure of efficiency.

The global filter, self-attention, a spatial MLP and a 3x3 depthwise convolution, in
inference; `copy` reads and writes the tokens once. spread: the distance of the quartiles
over the median; of_copy: the time over that of the copy; exponent: d log(time) /
d log(tokens), fitted from 28x28 up. The latter two and the figure are of the shortest
times (least_ms), which other programs on the machine disturb least. A layer is left out
on grids where it would take longer than --limit, or its kernel more memory than --memory.

  python tools/benchmark.py layer --figure layer.svg     # the figure needs matplotlib
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from benchmarks import _measure

from gfnet_jax.errors import UserError
from gfnet_jax.files import make_directory
from gfnet_jax.models.fourier import global_filter

HEAD_DIM = 64
SCORES = 1 << 22  # of attention held at a time: 16 MB, which caches hold
FIT_FROM = 28 * 28  # tokens; below, fixed costs bend the line
LABELS = {
  "filter": "global filter",
  "attention": "self-attention",
  "mlp": "spatial MLP",
  "convolution": "3x3 depthwise convolution",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--sides", nargs="+", type=_measure.count, default=[14, 28, 56, 112, 224])
  parser.add_argument(
    "--width", type=_measure.count, default=384, help="channels, a multiple of 64"
  )
  parser.add_argument("--batch-size", type=_measure.count, default=1)
  parser.add_argument("--rounds", type=_measure.count, default=7, help="turns of every layer")
  parser.add_argument("--limit", type=float, default=10, help="seconds per call, estimated")
  parser.add_argument("--memory", type=float, default=4, help="GB of a kernel")
  parser.add_argument("--figure", type=Path, help="file of a plot, such as layer.svg")


def run(options: argparse.Namespace) -> None:
  if options.width % HEAD_DIM:
    raise UserError(f"--width is {options.width}, expected a multiple of {HEAD_DIM}")
  if options.figure:
    pyplot = _measure.import_pyplot()
    make_directory(options.figure.parent)
  rows, seconds = [], {}
  for side in _measure.progress(sorted(options.sides), "grid"):
    for name, times in measure(side, seconds, options).items():
      seconds.setdefault(name, {})[side**2] = min(times)
      low, median, high = _measure.quartiles_ms(times)
      least = 1e3 * min(times)
      row = {"layer": name, "grid": f"{side}x{side}", "least_ms": least, "median_ms": median}
      row |= {"spread": (high - low) / median, "of_copy": least / (1e3 * seconds["copy"][side**2])}
      rows.append(row | {"exponent": exponent(seconds[name])})
  _measure.report("layer", rows, options)
  if options.figure:
    draw(pyplot, seconds, options)


def measure(
  side: int, before: dict[str, dict[int, float]], options: argparse.Namespace
) -> dict[str, list[float]]:
  """Seconds of every layer that fits on this grid; first those of a copy."""
  tokens = side**2
  shape = (options.batch_size, side, side, options.width)
  x = jax.random.normal(jax.random.key(0), shape)
  functions = {"copy": functools.partial(jax.jit(lambda x: 2 * x), x)}
  for name, make in LAYERS.items():
    # As if the cost were quadratic: never too low.
    known = before.get(name, {})
    estimate = max((time * (tokens / n) ** 2 for n, time in list(known.items())[-1:]), default=0)
    kernel_gb = 4e-9 * tokens**2 if name == "mlp" else 0
    if estimate <= options.limit and kernel_gb <= options.memory:
      functions[name] = make(x)
  return _measure.time_in_turns(functions, options.rounds, turn=0.02)


def make_filter(x: jax.Array) -> Callable[[], jax.Array]:
  _, height, width, channels = x.shape
  weight = jax.random.normal(jax.random.key(1), (2, height, width // 2 + 1, channels))
  return functools.partial(jax.jit(global_filter), x, weight)


def make_attention(x: jax.Array) -> Callable[[], jax.Array]:
  """With its projections; as many rows and heads at a time as fit in SCORES."""
  batch, height, width, channels = x.shape
  keys = jax.random.split(jax.random.key(1))
  inner = jax.random.normal(keys[0], (channels, 3 * channels)) * channels**-0.5
  outer = jax.random.normal(keys[1], (channels, channels)) * channels**-0.5

  def head(query_key_value: jax.Array) -> jax.Array:
    query, key, value = query_key_value  # (tokens, HEAD_DIM) each

    def row(query):
      return jax.nn.softmax(key @ query * HEAD_DIM**-0.5) @ value

    return jax.lax.map(row, query, batch_size=max(1, SCORES // len(query)))

  @jax.jit
  def attention(x, inner, outer):
    tokens = x.reshape(batch, -1, channels) @ inner
    heads = tokens.reshape(batch, height * width, 3, -1, HEAD_DIM).transpose(0, 3, 2, 1, 4)
    mixed = jax.lax.map(
      head, heads.reshape(-1, *heads.shape[2:]), batch_size=max(1, SCORES // (height * width) ** 2)
    )
    mixed = mixed.reshape(batch, -1, height * width, HEAD_DIM).swapaxes(1, 2)
    return (mixed.reshape(batch, -1, channels) @ outer).reshape(x.shape)

  return functools.partial(attention, x, inner, outer)


def make_mlp(x: jax.Array) -> Callable[[], jax.Array]:
  batch, height, width, channels = x.shape
  kernel = jax.random.normal(jax.random.key(1), (height * width, height * width))
  mix = jax.jit(lambda x, kernel: kernel @ x.reshape(batch, -1, channels))
  return functools.partial(mix, x, kernel)


def make_convolution(x: jax.Array) -> Callable[[], jax.Array]:
  channels = x.shape[-1]
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, channels))
  convolve = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=channels,
  )
  return functools.partial(jax.jit(convolve), x, kernel)


LAYERS = {
  "filter": make_filter,
  "attention": make_attention,
  "mlp": make_mlp,
  "convolution": make_convolution,
}


def exponent(seconds: dict[int, float]) -> float | None:
  """The slope of log(time) over log(tokens) by least squares, if there are two points."""
  points = [(n, time) for n, time in seconds.items() if n >= FIT_FROM]
  if len(points) < 2:
    return None
  return float(np.polyfit(*np.log(np.array(points)).T, 1)[0])


def draw(pyplot, seconds: dict[str, dict[int, float]], options: argparse.Namespace) -> None:
  """Time over tokens, both logarithmic, with the fitted exponents in the legend."""
  figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
  for name, label in LABELS.items():
    times = seconds.get(name, {})
    slope = exponent(times)
    label += f", N^{slope:.2f}" if slope is not None else ""
    axes.plot(times.keys(), [1e3 * time for time in times.values()], marker="o", label=label)
  copy = seconds["copy"]
  axes.plot(copy.keys(), [1e3 * t for t in copy.values()], "k:", label="reading and writing once")
  sides = sorted(options.sides)
  axes.set(xscale="log", yscale="log", xlabel="tokens N", ylabel="milliseconds per call")
  axes.set_xticks([side**2 for side in sides], [f"{side}x{side}" for side in sides])
  axes.minorticks_off()
  axes.grid(alpha=0.3)
  axes.set_title(f"Mixing layers, width {options.width}, batch {options.batch_size}, float32")
  axes.legend()
  figure.savefig(options.figure)
