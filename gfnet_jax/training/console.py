"""What a run shows on the screen."""

import contextlib
import math
import multiprocessing
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
from tqdm import tqdm

from gfnet_jax.buckets import BucketPath
from gfnet_jax.inference.metrics import format_means, format_results
from gfnet_jax.models.batch_norm import is_statistic
from gfnet_jax.models.platform import multiplies
from gfnet_jax.text import printable

LINE_SECONDS = 30.0  # between lines of progress where there is no terminal


def describe_run(
  config: ml_collections.ConfigDict,
  workdir: Path | BucketPath,
  parameters: dict[str, jax.ShapeDtypeStruct],
  first_step: int,
  num_steps: int,
) -> None:
  """Prints the network's size, the devices and what is about to happen."""
  if jax.process_index() != 0:
    return
  print(f"Network:         {config.model.name}, {describe_parameters(parameters)}")
  device = jax.devices()[0]
  processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
  print(
    f"Devices:         {jax.device_count()} x {device.device_kind} ({device.platform}){processes}"
  )
  is_cpu = device.platform == "cpu"
  if is_cpu and config.precision == "bf16" and not multiplies(jax.numpy.bfloat16, "cpu"):
    print(
      "Precision:       bf16 without AVX512_BF16 or AMX: factors are rounded to it and multiplied "
      "in float32; --config.precision=default is no slower and more exact, but takes more memory"
    )
  print(f"Data set:        {printable(config.data.name, 400)}")
  print(f"Work directory:  {printable(workdir, 400)}")
  print(f"Steps:           {num_steps}", end="")
  print(f", resumed after {first_step}" if first_step else "", flush=True)


def describe_parameters(parameters: dict[str, jax.ShapeDtypeStruct]) -> str:
  """How many parameters there are, and how many of them in each part of the network."""
  parts = {}
  for name, value in parameters.items():
    if is_statistic(name):
      continue
    part = re.match(r"(?:patch_embed|blocks)\.\d+(?=\.\d|\.stacked|\.proj)|[^.]+", name)[0]
    parts[part] = parts.get(part, 0) + value.size
  listed = ", ".join(f"{part} {count:,}" for part, count in parts.items())
  return f"{sum(parts.values()):,} parameters ({listed}); all arrays in parameters.txt"


class ProgressBar:
  """Steps done, loss, learning rate, images/s and time left.

  Where there is no terminal, it is a line every LINE_SECONDS at most.

  Args:
    first_step: steps done before.
    num_steps: of the whole run.
    num_classes: of the model; None where that is not known.
  """

  def __init__(self, first_step: int, num_steps: int, num_classes: int | None = None):
    self._step, self._num_steps, self._num_classes = first_step, num_steps, num_classes
    self._shown = time.monotonic()
    self._bar = tqdm(
      total=num_steps,
      initial=first_step,
      desc="train",
      unit="step",
      smoothing=0.05,
      disable=jax.process_index() != 0 or None,
    )

  def __enter__(self) -> "ProgressBar":
    return self

  def __exit__(self, *exception) -> None:
    self._bar.close()

  def advance(self) -> None:
    """Counts a step."""
    self._step += 1
    self._bar.update()

  def show(self, values: dict[str, float]) -> None:
    """Shows the latest means behind the bar, or on a line of their own."""
    speed = values.get("images_per_second")  # not known after the first step
    means = f"loss {values.get('train_loss', math.nan):.4f}, lr {values['learning_rate']:.2e}"
    means += f", {speed:,.0f} img/s" if speed else ""
    self._bar.set_postfix_str(means)
    now, step = time.monotonic(), self._step + 1  # which is about to be counted
    if self._bar.disable and jax.process_index() == 0 and now - self._shown >= LINE_SECONDS:
      self._shown = now
      seconds = (self._num_steps - step) * values.get("step_seconds", math.nan)
      left = f", {tqdm.format_interval(seconds)} left" if math.isfinite(seconds) else ""
      print(f"step {step} of {self._num_steps}   {means}{left}", flush=True)

  def print_evaluation(self, epoch: float, results: dict[str, float | int]) -> None:
    """Prints a line above the bar, and another one for averaged weights."""
    if jax.process_index() == 0:
      self._bar.write(f"epoch {epoch:7.2f}   {format_results(results, self._num_classes)}")
      averaged = {n.removeprefix("ema_"): v for n, v in results.items() if n.startswith("ema_")}
      if averaged:
        self._bar.write(f"{'averaged':13}   {format_means(averaged, self._num_classes)}")
      sys.stdout.flush()  # a log file should show it at once


class Stopwatch:
  """Where the time of training went since it was last read, without the pauses.

  The first step is left out: it waits for the compiler, and for input workers to start.

  Args:
    batch_size: images in a step.
  """

  def __init__(self, batch_size: int):
    self._batch_size, self._first = batch_size, True
    self._restart()

  def _restart(self) -> None:
    self._steps, self._waited, self._start = 0, 0.0, time.monotonic()

  def count(self, state: Any) -> None:
    """Counts one step, of which `state` is the result."""
    if self._first:
      jax.block_until_ready(state)
      self._first = False
      self._restart()
    else:
      self._steps += 1

  def waits(self, batches: Iterator) -> Iterator:
    """The batches, with the time that each was waited for."""
    while True:
      begin = time.monotonic()
      try:
        batch = next(batches)
      except StopIteration:
        return
      self._waited += time.monotonic() - begin
      yield batch

  def read(self) -> dict[str, float]:
    """What `performance.jsonl` says of the steps since the last call.

    Returns:
      Images per second, seconds per step and the part of them spent waiting for data,
      unless there was no step but the first; peaks of memory, in GiB.
    """
    seconds, steps, rates = time.monotonic() - self._start, self._steps, {}
    if steps:
      rates = {
        "images_per_second": steps * self._batch_size / seconds,
        "step_seconds": seconds / steps,
        "data_wait_seconds": self._waited / steps,
      }
    host = _host_memory()
    memory = {"memory_gib": _device_memory() or host, "host_memory_gib": host}
    self._restart()
    return rates | {name: value / 2**30 for name, value in memory.items()}

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves out the time spent inside."""
    begin = time.monotonic()
    yield
    self._start += time.monotonic() - begin


def _device_memory() -> int | None:
  """The peak of the first device's memory in bytes; None where it is the host's."""
  statistics = jax.local_devices()[0].memory_stats()
  return statistics["peak_bytes_in_use"] if statistics else None


def _host_memory() -> int:
  """The peaks of this process and of the input workers that it has, in bytes, together."""
  own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return own + sum(_peak_of(process.pid) for process in multiprocessing.active_children())


def _peak_of(process: int) -> int:
  """The peak of another process's memory; 0 if it has just ended, or not on Linux."""
  try:
    status = Path(f"/proc/{process}/status").read_text()
  except OSError:
    return 0
  found = re.search(r"VmHWM:\s+(\d+) kB", status)
  return int(found[1]) * 1024 if found else 0
