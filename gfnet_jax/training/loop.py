"""A training run: from a config and a work directory to a trained model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from gfnet_jax.data.erasing import Erasing
from gfnet_jax.data.pipeline import Reading, Share, check_bad_fraction, train_batches
from gfnet_jax.errors import UserError
from gfnet_jax.files import make_directory, write_atomically
from gfnet_jax.models.variants import create_model
from gfnet_jax.training.check import NONFINITE, check_config, check_groups, check_profile
from gfnet_jax.training.checkpoint import (
  WRITE_TIMEOUT,
  Checkpoints,
  find_checkpoint,
  model_metadata,
)
from gfnet_jax.training.console import ProgressBar, Stopwatch, describe_run, say
from gfnet_jax.training.distributed import Preemption
from gfnet_jax.training.evaluate import evaluate
from gfnet_jax.training.initial import initial_params
from gfnet_jax.training.metrics import TrainMetrics
from gfnet_jax.training.objective import Batch
from gfnet_jax.training.parts import build_steps, model_config, open_data
from gfnet_jax.training.precision import matmul_precision
from gfnet_jax.training.profile import Profile
from gfnet_jax.training.resume import restore_run, state_to_trees
from gfnet_jax.training.sharding import check_batch_size, make_mesh, replicated, to_devices
from gfnet_jax.training.watchdog import Watchdog
from gfnet_jax.training.writer import MetricWriter

MAX_LINES_WITHOUT_MEANS = 10  # all their steps skipped, before the run stops after all
MAX_ROLLBACKS = 10  # without a new checkpoint between them, before the run stops after all


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, float | int] | None:
  """Trains, or continues the run that the work directory holds.

  Args:
    config: one of configs/; the fields are explained in configs/default.py.
    workdir: receives config.json, metrics.jsonl, performance.jsonl, tensorboard/ and
      checkpoints/; shared by all processes.

  Returns:
    The last evaluation: top1 and top5 in percent, loss, images, images_per_second; None
    if the run was stopped by a signal.

  Raises:
    UserError: for anything in the config, the data or the directory that cannot work.
  """
  config = config.copy_and_resolve_references()  # the classes may have to be counted
  check_config(config)
  check_model(config)
  mesh = make_mesh()
  with jax.set_mesh(mesh), matmul_precision(config.precision), Preemption() as preemption:
    run = _Run(config, workdir, mesh)
    make_directory(workdir)
    with Watchdog(workdir / "heartbeats", config.stall_timeout) as watchdog:
      try:
        return run.run(watchdog, preemption)
      except jax.errors.JaxRuntimeError as error:
        watchdog.look_for_the_dead(error)  # the connection to another process, perhaps
        raise


def check_model(config: ml_collections.ConfigDict) -> None:
  """Raises UserError for mistakes in the model, before the data, which may take long to open."""
  model = model_config(config) | {"num_classes": config.model.num_classes or 1}
  nnx.eval_shape(lambda: create_model(**model))
  if config.init_checkpoint:
    find_checkpoint(Path(config.init_checkpoint))


class _Preempted(Exception):
  """A signal asks the run to stop."""


class _NonFinite(Exception):
  """The loss or the gradient of a step was not finite."""


class _Run:
  """One run, put together in the order in which it can go wrong, and its progress."""

  def __init__(self, config: ml_collections.ConfigDict, workdir: Path, mesh: Mesh):
    self.config, self.workdir, self.mesh = config, workdir, mesh
    check_batch_size(config.data.batch_size, config.optimizer.accumulate_steps, mesh)
    check_groups(config, mesh)
    self.reading = Reading(**config.data.reading)
    self.data = open_data(config)
    check_profile(config, self.data.num_steps)
    self.steps = build_steps(config, mesh)

  def _start(self) -> None:
    """The state of the newest checkpoint, or a fresh one."""
    steps = self.steps
    restored = restore_run(self.checkpoints, self.config, steps.shapes, steps.shardings)
    if restored:
      self.state, metadata = restored
      self.results, self.skipped = metadata["metrics"], metadata["skipped_batches"]
      self.evaluated = metadata["step"] if metadata["evaluated"] else 0
    else:
      params = initial_params(steps.make_model, self.config.init_checkpoint, self.mesh)
      self.state, self.results, self.skipped, self.evaluated = steps.init(params), {}, [], 0
    self.first_step = int(self.state.step)

  def run(self, watchdog: Watchdog, preemption: Preemption) -> dict[str, float | int] | None:
    """Begins or goes on, and trains to the end.

    Returns:
      The last evaluation, or None if preempted.
    """
    config, workdir = self.config, self.workdir
    self.watchdog, self.preemption = watchdog, preemption
    timeout = min(WRITE_TIMEOUT, config.stall_timeout / 2 or WRITE_TIMEOUT)
    keep_last = config.checkpoints.keep_last
    self.checkpoints = Checkpoints(workdir / "checkpoints", keep_last=keep_last, timeout=timeout)
    try:
      self._start()
      self._write_config()
      describe_run(config, workdir, self.steps.shapes.params, self.first_step, self.data.num_steps)
      self.rollbacks, self.furthest_save = 0, self.first_step
      self.lines_without_means, self.skipped_steps = 0, int(self.state.bad_steps)
      finished = self._train_or_roll_back()
    except Exception:
      with contextlib.suppress(UserError):  # what went wrong first says more
        self.checkpoints.close()
      raise
    self.checkpoints.close()
    if finished:
      return self.results
    say("Stopped by a signal with everything saved; the same command goes on from here")
    return None

  def _write_config(self) -> None:
    path = self.workdir / "config.json"
    if jax.process_index() == 0:
      try:
        write_atomically(path, self.config.to_json(indent=2) + "\n")
      except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); make room") from error

  def _train_or_roll_back(self) -> bool:
    while True:
      self.writer = MetricWriter(self.workdir, self.first_step)
      try:
        return self._train_or_stop()
      except _NonFinite:
        self._roll_back()
      finally:
        self.writer.close()

  def _train_or_stop(self) -> bool:
    """Trains until the end (True) or until a signal, after which the state is saved (False)."""
    try:
      self._train()
    except _Preempted:
      self._save(int(self.state.step))
      return False
    return True

  def _train(self) -> None:
    config, first_batch = self.config, self._batch_of(self.first_step + 1)
    batches = train_batches(
      self.data.train_source,
      self.data.train_transform,
      seed=config.seed,
      share=Share(config.data.batch_size, jax.process_index(), jax.process_count()),
      first_step=first_batch,
      num_steps=self.data.num_steps + len(self.skipped),
      reading=self.reading,
      repeats=config.data.repeats,
      erasing=Erasing(**config.erasing),
    )
    wanted = (batch for i, batch in enumerate(batches, first_batch) if i not in self.skipped)
    watch, profile = Stopwatch(), Profile(config.profile, self.workdir)
    bar = ProgressBar(self.first_step, self.data.num_steps)
    with contextlib.closing(batches), contextlib.closing(profile), bar:
      if self.evaluated < self.first_step and self._evaluates_after(self.first_step):
        with watch.paused():  # a signal came before or within it
          self._evaluate_and_save(self.first_step, bar)
      arriving = self._saved_on_error(watch.waits(to_devices(wanted, self.mesh)))
      for step, batch in enumerate(arriving, self.first_step + 1):
        profile.before(step)
        self.state = self.steps.train(
          self.state, self.steps.teacher_params, batch, self.data.schedule(step - 1)
        )
        profile.after(step, self.state)
        watch.count(config.data.batch_size)
        self.watchdog.advance()
        preempted = self.preemption.reached()
        if step % config.log_every_steps == 0 or step == self.data.num_steps:
          bar.show(self._log(step, watch))
        if preempted:
          raise _Preempted
        if self._evaluates_after(step):
          with watch.paused():
            self._evaluate_and_save(step, bar)
        elif config.checkpoints.every_steps and step % config.checkpoints.every_steps == 0:
          self._save(step)
        bar.advance()

  def _saved_on_error(self, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; if no more can be read, the steps before are not lost."""
    try:
      yield from batches
    except UserError:
      self._save_before_the_end()
      raise

  def _save_before_the_end(self) -> None:
    """Saves what an error in the data leaves whole, if this process is the only one.

    Others would have to take part, and do not know of the error.
    """
    step = int(self.state.step)
    if jax.process_count() == 1 and step > self.first_step:
      self._save(step)
      say(f"Everything up to step {step} is saved; the same command goes on from there")

  def _batch_of(self, step: int) -> int:
    """The index of the global batch that a step (1, 2, ...) takes."""
    index = step - 1
    for skipped in sorted(self.skipped):
      index += skipped <= index
    return index

  def _evaluates_after(self, step: int) -> bool:
    return step == self.data.num_steps or self._ends_period(step, self.config.eval_every_epochs)

  def _ends_period(self, step: int, epochs: float) -> bool:
    """Whether a multiple of this many epochs ends at this step, rounded to steps."""
    period = epochs * self.data.steps_per_epoch
    return period > 0 and step == round(round(step / period) * period)

  def _log(self, step: int, watch: Stopwatch) -> dict[str, float]:
    """Writes the means since the last line; waits for the device."""
    self._check_finite()
    norm = self.steps.parameter_norm(self.state.params)
    state = self.state
    metrics, bad_steps, bad_samples, norm = jax.device_get(
      (state.metrics, state.bad_steps, state.bad_samples, norm)
    )
    data = self.config.data
    check_bad_fraction(
      int(bad_samples), step * data.batch_size, self.data.train_source, data.max_bad_fraction
    )
    if bad_steps > self.skipped_steps:
      say(f"warning: {bad_steps} steps up to step {step} were not finite, and skipped")
    self.skipped_steps = bad_steps
    means = _means(metrics)
    self.lines_without_means = 0 if means else self.lines_without_means + 1
    if self.lines_without_means == MAX_LINES_WITHOUT_MEANS:
      raise UserError(
        f"no step of the last {self.lines_without_means} lines of metrics was finite; lower the "
        "learning rate"
      )
    empty = jax.device_put(TrainMetrics.empty(), replicated(self.mesh))
    self.state = self.state.replace(metrics=empty)
    values = {
      "epoch": step / self.data.steps_per_epoch,
      "learning_rate": self.data.schedule(step - 1),
      **means,
      "parameter_norm": float(norm),
      "skipped_steps": int(bad_steps),
      "bad_samples": int(bad_samples),
    }
    speed = watch.read()
    self.writer.write("metrics", step, values)
    self.writer.write("performance", step, speed)
    return values | speed

  def _check_finite(self) -> None:
    """Deals with a step that was not finite and is not skipped; waits for the device.

    Raises:
      _NonFinite: if the run is to go on from the last checkpoint.
      UserError: if it is to stop.
    """
    why = int(self.state.frozen)
    if not why:
      return
    step = int(self.state.step) + 1  # the state is still the one before
    what = ("loss", "gradient")[why - 1]
    what = f"the {what} of step {step} (batch {self._batch_of(step)}) is not finite"
    if self.config.on_nonfinite == "rollback" and self.rollbacks < MAX_ROLLBACKS:
      self.rollbacks += 1
      say(f"warning: {what}; going on from the last checkpoint without this batch")
      self.skipped.append(self._batch_of(step))
      raise _NonFinite
    if self.rollbacks:
      what += f", after {self.rollbacks} rollbacks"
    inspection = Checkpoints(self.workdir / "nonfinite")
    state = self.state.replace(frozen=jax.device_put(jnp.int32(0), replicated(self.mesh)))
    inspection.save(step - 1, state_to_trees(state), self._metadata(step - 1))
    where = f"the state before it is in {inspection.directory}"
    try:
      inspection.close()
    except UserError as error:
      where = f"{error}"
    others = [policy for policy in NONFINITE if policy not in ("stop", self.config.on_nonfinite)]
    raise UserError(
      f"{what}; {where}; lower the learning rate or set on_nonfinite to {' or '.join(others)}"
    )

  def _roll_back(self) -> None:
    """Goes back to the last checkpoint, without the batches found bad since."""
    skipped = self.skipped
    self.checkpoints.wait()
    self._start()
    self.skipped = sorted({*skipped, *self.skipped})

  def _evaluate_and_save(self, step: int, bar: ProgressBar) -> None:
    self._check_finite()
    try:
      results = self._evaluate(step)
    except UserError:
      self._save_before_the_end()
      raise
    bar.print_evaluation(step / self.data.steps_per_epoch, results)
    self.evaluated = step
    self._save(step)

  def _evaluate(self, step: int) -> dict[str, float | int]:
    """Evaluates the parameters, and their moving averages if there are any."""
    self.results = self._evaluate_params(self.state.params)
    if self.state.ema:
      averaged = self._evaluate_params(self.state.ema)
      self.results |= {f"ema_{name}": averaged[name] for name in ("top1", "top5", "loss")}
    values = {f"eval_{name}": value for name, value in self.results.items()}
    speed = {"eval_images_per_second": values.pop("eval_images_per_second")}
    self.writer.write("metrics", step, values)
    self.writer.write("performance", step, speed)
    return self.results

  def _evaluate_params(self, params) -> dict[str, float | int]:
    return evaluate(
      self.steps.evaluate,
      self.steps.gather(params),
      self.data.eval_source,
      self.data.eval_transform,
      batch_size=self.config.data.eval_batch_size,
      mesh=self.mesh,
      reading=self.reading,
      on_batch=self._go_on_evaluating,
    )

  def _go_on_evaluating(self) -> None:
    self.watchdog.advance()
    if self.preemption.reached():  # there may not be the time for the rest
      raise _Preempted

  def _save(self, step: int) -> None:
    self._check_finite()
    if step > self.furthest_save:
      self.rollbacks, self.furthest_save = 0, step
    self.checkpoints.save(step, state_to_trees(self.state), self._metadata(step))
    self.watchdog.advance()

  def _metadata(self, step: int) -> dict:
    return {
      **model_metadata(model_config(self.config), self.data.train_source.class_names),
      "config": self.config.to_dict(),
      "metrics": self.results if self.evaluated == step else {},
      "evaluated": self.evaluated == step,
      "next_batch": self._batch_of(step + 1),
      "skipped_batches": self.skipped,
      "keep": self._ends_period(step, self.config.checkpoints.keep_every_epochs),
    }


def _means(metrics: TrainMetrics) -> dict[str, float]:
  """The means by name; none if every step since the last line was skipped."""
  if metrics.loss.count == 0:
    return {}
  return {f"train_{name}": float(value) for name, value in metrics.compute().items()}
