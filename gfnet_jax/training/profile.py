"""A profile of some steps, for TensorBoard or Perfetto."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections


class Profile:
  """Records the steps first_step to last_step of a run into its directory `profile`.

  Args:
    profile: with first_step and last_step; 0 records nothing.
    workdir: of the run.
  """

  def __init__(self, profile: ml_collections.ConfigDict, workdir: Path):
    self._first, self._last = profile.first_step, profile.last_step
    self._directory = workdir / "profile"

  @contextlib.contextmanager
  def of(self, step: int) -> Iterator[None]:
    """To be held around every step."""
    if step == self._first:
      jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      yield
    if step == self._last:
      jax.effects_barrier()
      jax.profiler.stop_trace()
