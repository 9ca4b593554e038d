"""What a run shows on the screen."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
from clu import parameter_overview
from tqdm import tqdm


def describe_run(
  config: ml_collections.ConfigDict,
  workdir: Path,
  parameters: dict[str, jax.ShapeDtypeStruct],
  first_step: int,
  num_steps: int,
) -> None:
  """Prints the parameter table, the devices and what is about to happen."""
  print(parameter_overview.get_parameter_overview(parameters, include_stats=False))
  device = jax.devices()[0]
  print(f"Devices:         {jax.device_count()} x {device.device_kind} ({device.platform})")
  print(f"Data set:        {config.data.name}")
  print(f"Work directory:  {workdir}")
  print(f"Steps:           {num_steps}", end="")
  print(f", resumed after {first_step}" if first_step else "", flush=True)


class ProgressBar:
  """Steps done, loss, learning rate, images/s and time left; quiet off a terminal."""

  def __init__(self, first_step: int, num_steps: int):
    self._bar = tqdm(
      total=num_steps, initial=first_step, desc="train", unit="step", disable=None, smoothing=0.05
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
      f"loss {values['train_loss']:.4f}, lr {values['learning_rate']:.2e}, "
      f"{values['images_per_second']:,.0f} img/s"
    )

  def print_evaluation(self, epoch: float, results: dict[str, float | int]) -> None:
    """Prints one line above the bar."""
    self._bar.write(f"epoch {epoch:7.2f}   {format_results(results)}")
    sys.stdout.flush()  # a log file should show it at once


def format_results(results: dict[str, float | int]) -> str:
  """One line for an evaluation."""
  return (
    f"top-1 {results['top1']:6.2f} %   top-5 {results['top5']:6.2f} %   "
    f"loss {results['loss']:.4f}   {results['images']} images   "
    f"{results['images_per_second']:,.0f} images/s"
  )


class Stopwatch:
  """Images per second since it was last asked, without the pauses."""

  def __init__(self):
    self._images, self._start = 0, time.monotonic()

  def count(self, images: int) -> None:
    self._images += images

  def images_per_second(self) -> float:
    """The rate since the last call."""
    now = time.monotonic()
    rate = self._images / (now - self._start)
    self._images, self._start = 0, now
    return rate

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves out the time spent inside."""
    begin = time.monotonic()
    yield
    self._start += time.monotonic() - begin
