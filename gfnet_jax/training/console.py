"""What a run shows on the screen."""

import contextlib
import math
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
from clu import parameter_overview
from tqdm import tqdm

from gfnet_jax.inference.metrics import format_results


def describe_run(
  config: ml_collections.ConfigDict,
  workdir: Path,
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
    self._bar.set_postfix_str(
      f"loss {values.get('train_loss', math.nan):.4f}, lr {values['learning_rate']:.2e}, "
      f"{values['images_per_second']:,.0f} img/s"
    )

  def print_evaluation(self, epoch: float, results: dict[str, float | int]) -> None:
    """Prints one line above the bar."""
    if jax.process_index() == 0:
      self._bar.write(f"epoch {epoch:7.2f}   {format_results(results)}")
      sys.stdout.flush()  # a log file should show it at once


class Stopwatch:
  """Where the time of training went since it was last read, without the pauses.

  Args:
    batch_size: images in a step.
  """

  def __init__(self, batch_size: int):
    self._batch_size, self._steps = batch_size, 0
    self._waited = 0.0
    self._start = time.monotonic()

  def count(self) -> None:
    """Counts one step."""
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
    """Rate, seconds per step and the part of them spent waiting for data, since the last call."""
    now = time.monotonic()
    seconds = now - self._start
    result = {
      "images_per_second": self._steps * self._batch_size / seconds,
      "step_seconds": seconds / self._steps,
      "data_wait_seconds": self._waited / self._steps,
      "memory_gib": _peak_memory() / 2**30,
    }
    self._steps, self._waited, self._start = 0, 0.0, now
    return result

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves out the time spent inside."""
    begin = time.monotonic()
    yield
    self._start += time.monotonic() - begin


def _peak_memory() -> int:
  """The peak of the first device's memory in bytes; of the process where there is none."""
  statistics = jax.local_devices()[0].memory_stats()
  if statistics:
    return statistics["peak_bytes_in_use"]
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
