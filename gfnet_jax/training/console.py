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
from clu import parameter_overview
from tqdm import tqdm

from gfnet_jax.buckets import BucketPath
from gfnet_jax.inference.metrics import METRICS, format_means, format_results


def describe_run(
  config: ml_collections.ConfigDict,
  workdir: Path | BucketPath,
  parameters: dict[str, jax.ShapeDtypeStruct],
  first_step: int,
  num_steps: int,
) -> None:
  """Prints the parameter table, the devices and what is about to happen."""
  if jax.process_index() != 0:
    return
  print(parameter_overview.get_parameter_overview(parameters, include_stats=False))
  device = jax.devices()[0]
  processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
  print(
    f"Devices:         {jax.device_count()} x {device.device_kind} ({device.platform}){processes}"
  )
  print(f"Data set:        {config.data.name}")
  print(f"Work directory:  {workdir}")
  print(f"Steps:           {num_steps}", end="")
  print(f", resumed after {first_step}" if first_step else "", flush=True)


class ProgressBar:
  """Steps done, loss, learning rate, images/s and time left; quiet off a terminal."""

  def __init__(self, first_step: int, num_steps: int):
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
    self._bar.update()

  def show(self, values: dict[str, float]) -> None:
    """Shows the latest means behind the bar."""
    speed = values.get("images_per_second")  # not known after the first step
    self._bar.set_postfix_str(
      f"loss {values.get('train_loss', math.nan):.4f}, lr {values['learning_rate']:.2e}"
      + (f", {speed:,.0f} img/s" if speed else "")
    )

  def print_evaluation(self, epoch: float, results: dict[str, float | int]) -> None:
    """Prints a line above the bar, and another one for averaged weights."""
    if jax.process_index() == 0:
      self._bar.write(f"epoch {epoch:7.2f}   {format_results(results)}")
      averaged = {name: results.get(f"ema_{name}") for name in METRICS}
      if None not in averaged.values():
        self._bar.write(f"{'averaged':13}   {format_means(averaged)}")
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
