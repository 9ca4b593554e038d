"""A profile of some steps, for TensorBoard or Perfetto."""

from pathlib import Path

import jax
import ml_collections


class Profile:
  """Records the steps first_step to last_step of a run into its directory `profile`.

  Only process 0 does, and a profile that cannot be written only costs a warning.

  Args:
    profile: with first_step and last_step; a first_step of 0 records nothing.
    workdir: of the run.
  """

  def __init__(self, profile: ml_collections.ConfigDict, workdir: Path):
    recorded = profile.first_step and jax.process_index() == 0
    self._steps = range(profile.first_step, profile.last_step + 1) if recorded else ()
    self._directory, self._active = workdir / "profile", False

  def before(self, step: int) -> None:
    """Starts recording if the step is to be recorded."""
    if step in self._steps and not self._active:
      jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
      self._active = True

  def after(self, step: int, state) -> None:
    """Stops after the last step to be recorded, once the device has done it."""
    if self._active and step + 1 not in self._steps:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    """Writes what was recorded; the run may end in the middle."""
    if self._active:
      self._active = False
      try:
        jax.profiler.stop_trace()
      except (OSError, RuntimeError, ValueError) as error:
        print(f"warning: the profile could not be written ({error})", flush=True)
