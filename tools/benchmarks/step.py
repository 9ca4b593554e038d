"""The real training step: what train.py runs for every batch, on all devices.

From uint8 images to the next state: normalisation, random erasing, mixup and CutMix, forward
and backward pass, clipping, AdamW, moving averages, metrics, and the reduction over the
devices; in turns with the evaluation step of the same batch. Images are random, so
nothing is read. memory_mb is what XLA plans for one device: arguments, results and
temporaries. Fields of the config can be overridden as for train.py:

  python tools/benchmark.py step --config configs/imagenet.py:gfnet-xs --config.data.batch_size=8
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from benchmarks import _measure

from gfnet_jax.config_files import read_config
from gfnet_jax.data.erasing_boxes import Erasing
from gfnet_jax.models.image_size import as_height_width
from gfnet_jax.models.precision import matmul_precision
from gfnet_jax.sharding import check_batch_size, make_mesh, split_batch
from gfnet_jax.training.config_rules import check_config, check_groups
from gfnet_jax.training.initialize import initial_params
from gfnet_jax.training.memory import advise, explain_shortage, read_plan
from gfnet_jax.training.program import build_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", default="configs/imagenet.py:gfnet-xs", metavar="FILE[:ARGUMENT]")
  parser.add_argument("--rounds", type=_measure.count, default=10, help="turns of each step")
  parser.add_argument(
    "--profile", type=Path, help="directory for jax.profiler's trace of a training step"
  )
  parser.set_defaults(overrides=())


def run(options: argparse.Namespace) -> None:
  config = read_config(options.config, options.overrides)
  check_config(config)
  mesh = make_mesh()
  shortage = explain_shortage(lambda: advise(config, mesh.size))
  with jax.set_mesh(mesh), matmul_precision(config.precision), shortage:
    rows = measure(config, mesh, options)
  _measure.report("step", rows, options)


def measure(
  config, mesh: jax.sharding.Mesh, options: argparse.Namespace
) -> list[dict[str, object]]:
  """A row for the training step and one for the evaluation step."""
  check_batch_size(config.data.batch_size, config.optimizer.accumulate_steps, mesh)
  check_groups(config, mesh)
  program = build_program(config, mesh)
  state = program.init(initial_params(program.make_model, config.init_checkpoint, mesh))
  batch = jax.device_put(random_batch(config), split_batch(mesh))
  arguments = (program.teacher_params, batch, config.optimizer.learning_rate)
  train, train_s = compiled(program.train, state, *arguments)
  params = program.gather(state.params)
  evaluate, evaluate_s = compiled(program.evaluate, params, batch)

  def train_step():
    nonlocal state
    state = train(state, *arguments)
    return state.step

  times = _measure.time_in_turns(
    {"train": train_step, "evaluate": lambda: evaluate(params, batch)}, options.rounds, turn=0.2
  )
  if options.profile:
    with jax.profiler.trace(options.profile, create_perfetto_trace=True):
      jax.block_until_ready(train_step())
  return [
    row(config, what, times[what], step, seconds)
    for what, step, seconds in (("train", train, train_s), ("evaluate", evaluate, evaluate_s))
  ]


def random_batch(config) -> dict[str, np.ndarray]:
  """What the input pipeline would yield: uint8 images, labels, and boxes to erase."""
  rng, size = np.random.default_rng(0), config.data.batch_size
  height, width = as_height_width(config.model.image_size)
  batch = {
    "image": rng.integers(0, 256, (size, height, width, 3), np.uint8),
    "label": rng.integers(0, config.model.num_classes, size).astype(np.int32),
    "bad": np.zeros(size, bool),
  }
  erasing = Erasing(**config.erasing)
  if erasing.probability:
    batch["erase"] = np.tile(
      np.int32([[0, 0, height // 2, width // 2]]), (size, erasing.max_count, 1)
    )
  return batch


def compiled(function, *arguments) -> tuple[jax.stages.Compiled, float]:
  """The compiled function, and the seconds that tracing and compiling took."""
  start = time.perf_counter()
  return function.lower(*arguments).compile(), time.perf_counter() - start


def row(
  config, what: str, seconds: list[float], step: jax.stages.Compiled, compile_s: float
) -> dict[str, object]:
  low, median, high = _measure.quartiles_ms(seconds)
  return {
    "model": config.model.name,
    "what": what,
    "batch": config.data.batch_size,
    "precision": config.precision,
    "ms": median,
    "spread": (high - low) / median,
    "images/s": 1e3 * config.data.batch_size / median,
    "compile_s": compile_s,
    "memory_mb": sum(read_plan(step)) / 1e6,
  }
