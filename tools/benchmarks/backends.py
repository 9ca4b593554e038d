"""The filter's Fourier backends on every grid of the seven variants, at 224 and 384.

The time of the filter forward, and forward with its gradient. With --write, the latter
become the measurements from which backend="auto" chooses on this platform:

  python tools/benchmark.py backends --write
  python tools/benchmark.py backends --grids 14x14x384 56x56x96 --batch-size 128
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from benchmarks import _measure
from token_grid import token_grid

from gfnet_jax.files import write_atomically
from gfnet_jax.models import fourier_timings
from gfnet_jax.models.fourier import global_filter
from gfnet_jax.models.fourier_backends import BACKENDS, choose_backend
from gfnet_jax.models.fourier_timings import TIMINGS, Timing
from gfnet_jax.models.platform import platform_of
from gfnet_jax.models.variants import VARIANTS

DENSE_LIMIT = 600  # tokens above which one product over all of them is hopeless


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--batch-size", type=_measure.count, default=8)
  parser.add_argument("--rounds", type=_measure.count, default=15, help="turns of every backend")
  parser.add_argument(
    "--grids", nargs="+", type=token_grid, metavar="HEIGHTxWIDTHxCHANNELS", help="these instead"
  )
  parser.add_argument("--largest", type=_measure.count, default=96, help="side of the largest grid")
  parser.add_argument("--write", action="store_true", help="renew the measurements of auto")


def run(options: argparse.Namespace) -> None:
  rows, milliseconds, platform = [], {}, platform_of(jnp.zeros(()))
  known = [shape for shape in variant_shapes() if shape[0] <= options.largest]
  shapes = sorted(set(options.grids or known))
  for shape in _measure.progress(shapes, "grid"):
    forward, gradient = measure(shape, options)
    # The least: other programs only ever add time.
    best = {name: min(seconds) * 1e3 for name, seconds in gradient.items()}
    milliseconds[shape] = {name: round(value, 3) for name, value in best.items()}
    chosen = choose_backend("auto", shape, platform)
    for name in forward:
      rows.append(
        {
          "grid": f"{shape[0]}x{shape[1]}x{shape[2]}",
          "backend": name,
          "forward_ms": min(forward[name]) * 1e3,
          "with_gradient_ms": best[name],
          "median_ms": _measure.quartiles_ms(gradient[name])[1],
          "to_the_best": best[name] / min(best.values()),
          "auto": "*" if name == chosen else "",
        }
      )
  _measure.report("backends", rows, options)
  if options.write:
    measured = {shape: Timing("measured", times) for shape, times in milliseconds.items()}
    table = TIMINGS | {platform: TIMINGS.get(platform, {}) | measured}
    file = Path(fourier_timings.__file__)
    head, line, _ = file.read_text().partition("TIMINGS = {\n")
    write_atomically(file, head + line + "".join(table_lines(table)))


def worth_running(platform: str) -> list[str]:
  """The backends that a platform runs and compiles in reasonable time.

  The fused kernel is only interpreted but on a TPU, where each FFT takes minutes to compile.
  """
  left_out = "fft" if platform == "tpu" else "fused"
  return [name for name in BACKENDS if name != left_out]


def table_lines(timings: dict[str, dict[tuple, Timing]]) -> Iterator[str]:
  """The rows of the table as Python source, formatted as ruff would."""
  for platform, table in timings.items():
    yield f"  {json.dumps(platform)}: {{\n"
    for shape, row in sorted(table.items()):
      yield f"    {shape}: Timing({json.dumps(row.origin)}, {json.dumps(row.milliseconds)}),\n"
    yield "  },\n"
  yield "}\n"


def variant_shapes() -> set[tuple[int, int, int]]:
  """(height, width, channels) of every filter of the seven variants at 224 and 384."""
  shapes = set()
  for _, settings in VARIANTS.values():
    for image_size in (224, 384):
      if "embed_dim" in settings:
        shapes.add((image_size // 16, image_size // 16, settings["embed_dim"]))
      for stage, channels in enumerate(settings.get("embed_dims", ())):
        side = image_size // 4 // 2**stage
        shapes.add((side, side, channels))
  return shapes


def measure(
  shape: tuple[int, int, int], options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
  """Seconds by backend: forward, and forward with gradient."""
  height, width, channels = shape
  keys = jax.random.split(jax.random.key(0))
  tokens = jax.random.normal(keys[0], (options.batch_size, *shape))
  weight = jax.random.normal(keys[1], (2, height, width // 2 + 1, channels))
  names = [
    name
    for name in worth_running(platform_of(tokens))
    if name != "dense" or height * width <= DENSE_LIMIT
  ]

  def compiled(function) -> Callable[[], object]:
    program = jax.jit(function).lower(tokens, weight).compile()
    return lambda: program(tokens, weight)

  def filtered(name):
    return lambda tokens, weight: global_filter(tokens, weight, name)

  def with_gradient(name):
    def function(tokens, weight):
      result, pull_back = jax.vjp(filtered(name), tokens, weight)
      return result, pull_back(jnp.ones_like(result))

    return function

  functions = [kind(name) for kind in (filtered, with_gradient) for name in names]
  programs = list(_measure.in_threads(compiled, functions))
  forward, gradient = programs[: len(names)], programs[len(names) :]
  return tuple(
    _measure.time_in_turns(dict(zip(names, kind, strict=True)), options.rounds, turn=0.02)
    for kind in (forward, gradient)
  )
