"""What a run does about losses and gradients that are not finite."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

from gfnet_jax.buckets import BucketPath
from gfnet_jax.checkpoints.store import Checkpoints
from gfnet_jax.console import say
from gfnet_jax.errors import UserError
from gfnet_jax.training.config_rules import NONFINITE
from gfnet_jax.training.resume import Progress, save_run
from gfnet_jax.training.step import TrainState

MAX_LINES_WITHOUT_MEANS = 10  # in a row, all steps of which were skipped
MAX_ROLLBACKS = 10  # without a new checkpoint between them
MAX_STEPS_WITHOUT_MEANS = 10  # at the end of a run, all of which were skipped


class RollBack(Exception):
  """The run is to go back to its last checkpoint, and on without a batch.

  Attributes:
    batch: index of the batch whose loss or gradient was not finite.
  """

  def __init__(self, batch: int):
    super().__init__(f"batch {batch}")
    self.batch = batch


class NonFinite:
  """The policy of a run, `on_nonfinite`, and what it keeps in mind.

  Args:
    config: of the run.
    workdir: whose directory `nonfinite` receives the state before the step that ends the run.
    description: of the run, for that checkpoint; see `save_run`.
    state: with which the run begins or continues.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: Path | BucketPath,
    description: dict,
    state: TrainState,
  ):
    self._policy, self._directory = config.on_nonfinite, workdir / "nonfinite"
    self._description = description
    self._rollbacks, self._furthest_save = 0, int(state.step)
    self._skipped_steps, self._lines_without_means = int(state.bad_steps), 0
    self._finite_line = int(state.step)  # the last line of metrics with a finite step before it

  def check(self, state: TrainState, progress: Progress) -> None:
    """Deals with a step that was not finite and is not skipped; waits for the device.

    Raises:
      RollBack: if the run is to continue from the last checkpoint.
      UserError: if it is to stop.
    """
    why = int(state.frozen)
    if not why:
      return
    step = int(state.step) + 1  # the state is still the one before
    batch, what = progress.batch_of(step), ("loss", "gradient")[why - 1]
    what = f"the {what} of step {step} (batch {batch}) is not finite"
    if self._policy == "rollback" and self._rollbacks < MAX_ROLLBACKS:
      self._rollbacks += 1
      say(f"warning: {what}; continuing from the last checkpoint without this batch")
      raise RollBack(batch)
    if self._rollbacks:
      what += f", after {_counted(self._rollbacks, 'rollback')}"
    where = self._save_for_inspection(state, Progress(step - 1, {}, progress.skipped))
    others = [policy for policy in NONFINITE if policy not in ("stop", self._policy)]
    raise UserError(
      f"{what}; {where}; lower the learning rate or set on_nonfinite to {' or '.join(others)}"
    )

  def _save_for_inspection(self, state: TrainState, progress: Progress) -> str:
    checkpoints = Checkpoints(self._directory)
    state = state.replace(frozen=jax.device_put(jnp.int32(0), state.frozen.sharding))
    save_run(checkpoints, state, progress, self._description)
    try:
      checkpoints.close()
    except UserError as error:
      return str(error)
    return f"the state before it is in {self._directory}"

  def count_skipped(self, step: int, skipped_steps: int, finite: bool) -> None:
    """To be called with every line of metrics: warns of steps that were skipped since the last.

    Args:
      step: number of steps done.
      skipped_steps: how many of them were skipped.
      finite: whether at least one step since the last line was.

    Raises:
      UserError: if hardly a step is finite any more.
    """
    if new := skipped_steps - self._skipped_steps:
      say(
        f"warning: {_counted(new, 'step')} since the last line of metrics, up to step {step}, "
        f"{'was' if new == 1 else 'were'} not finite, and skipped: {skipped_steps} of {step} so far"
      )
    self._skipped_steps = skipped_steps
    if finite:
      self._finite_line = step
    self._lines_without_means = 0 if finite else self._lines_without_means + 1
    if self._lines_without_means == MAX_LINES_WITHOUT_MEANS:
      raise UserError(
        f"no step of the last {MAX_LINES_WITHOUT_MEANS} lines of metrics was finite; lower the "
        "learning rate"
      )

  def check_result(self, state: TrainState, progress: Progress) -> None:
    """To be called at the end of a run, which is no success if it has not trained its model.

    Raises:
      UserError: if most steps were skipped, or all of the last ones; or if the last
        evaluation is not finite.
    """
    step, skipped = progress.step, int(state.bad_steps)
    since = step - self._finite_line
    if 2 * skipped > step:
      what = f"steps that were not finite, and skipped: {skipped} of {step}"
    elif skipped and since >= MAX_STEPS_WITHOUT_MEANS:
      what = f"none of the last {since} steps was finite: they were skipped"
    elif not math.isfinite(progress.results.get("loss", 0.0)):
      what = "the loss of the last evaluation is not finite"
    else:
      return
    raise UserError(
      f"{what}; the model is not trained; lower the learning rate and start again in another "
      "--workdir"
    )

  def saved(self, step: int) -> None:
    """To be called after every checkpoint: one that is further on allows new rollbacks."""
    if step > self._furthest_save:
      self._rollbacks, self._furthest_save = 0, step


def _counted(number: int, noun: str) -> str:
  return f"{number} {noun}{'' if number == 1 else 's'}"
