"""A training run: from a config and a work directory to a trained model."""

from contextlib import closing
from pathlib import Path

import jax
import ml_collections

from gfnet_jax.buckets import BucketPath, as_directory
from gfnet_jax.config_files import load_config
from gfnet_jax.console import say
from gfnet_jax.data.pipeline import DataError, check_bad_fraction
from gfnet_jax.distributed import Preemption, together
from gfnet_jax.files import make_directory
from gfnet_jax.inference.evaluate import evaluate_params, task_of
from gfnet_jax.models.functional import Params
from gfnet_jax.models.precision import matmul_precision
from gfnet_jax.sharding import make_mesh, to_devices
from gfnet_jax.training import metrics
from gfnet_jax.training.choices import choose_as_before
from gfnet_jax.training.console import ProgressBar, Stopwatch, describe_run
from gfnet_jax.training.filter_images import write_filter_images
from gfnet_jax.training.final_report import conclude
from gfnet_jax.training.guards import Guards, Stopped
from gfnet_jax.training.inputs import batches_from
from gfnet_jax.training.lock import Lock
from gfnet_jax.training.memory import advise, check_memory, explain_shortage
from gfnet_jax.training.mirror import Mirror
from gfnet_jax.training.nonfinite import NonFinite, RollBack
from gfnet_jax.training.periods import Every
from gfnet_jax.training.profile import Profile
from gfnet_jax.training.resume import Progress, earlier_config, save_run
from gfnet_jax.training.run import (
  Run,
  begin,
  check,
  is_new,
  open_checkpoints,
  prepare,
  start,
  write_config,
)
from gfnet_jax.training.step import TrainState
from gfnet_jax.training.trackers import open_trackers
from gfnet_jax.training.watchdog import Watchdog
from gfnet_jax.training.writer import MetricWriter

Results = dict[str, float | int]


def train(
  config: ml_collections.ConfigDict | Path | str, workdir: Path | BucketPath | str
) -> Results | None:
  """Trains a network, or continues the run that the work directory holds.

  Args:
    config: of `load_config`, or what it takes, such as "digits"; the fields are explained in
      configs/default.py.
    workdir: receives config.json, parameters.txt, metrics.jsonl, performance.jsonl,
      tensorboard/ and checkpoints/, and report/ on request; shared by all processes. A
      directory, or one in a store: gs://bucket/run.

  Returns:
    The last evaluation, see `evaluate`: top1 and top5 in percent, for instance, and loss; with a
    test_split test_top1 and so on; None if the run was stopped by a signal. Called outside of
    the main thread, it leaves signals to the program.

  Raises:
    UserError: for anything in the config, the data or the directory that cannot work; also
      if another run uses the directory, or if it is moved or removed meanwhile.
  """
  config = load_config(str(config)) if isinstance(config, Path | str) else config
  config = config.copy_and_resolve_references()
  mirror = Mirror(together(lambda: as_directory(workdir)))
  together(lambda: choose_as_before(config, earlier_config(mirror.home / "checkpoints")))
  check(config)
  mesh = make_mesh()
  with (
    jax.set_mesh(mesh),
    matmul_precision(config.precision),
    explain_shortage(lambda: advise(config, mesh.size)),
    Preemption() as preemption,
  ):
    run = prepare(config, mirror, mesh)
    # What cannot be begun with is refused before anything is written.
    fresh = begin(run) if is_new(run.home) else None
    together(lambda: make_directory(run.home))
    with (
      Lock(run.home) as lock,
      Watchdog(lock, config.stall_timeout) as watchdog,
      mirror,
      open_checkpoints(config, mirror, lock) as checkpoints,
    ):
      state, progress = start(run, checkpoints, fresh)
      del fresh  # its memory is the first step's
      together(lambda: write_config(run))
      describe_run(config, run.home, run.program.shapes.params, progress.step, run.inputs.num_steps)
      nonfinite = NonFinite(config, run.home, run.description, state)
      with open_trackers(config, run.workdir, fresh=progress.step == 0) as trackers:
        guards = Guards(checkpoints, nonfinite, lock, watchdog, preemption, trackers)
        results = train_with_rollbacks(run, state, progress, guards)
        results = results and conclude(run, results, guards)
        if results is None:
          guards.mark_stopped()
  if results is None:
    say("Stopped by a signal with everything saved; the same command continues from here")
  return results


def train_with_rollbacks(
  run: Run, state: TrainState, progress: Progress, guards: Guards
) -> Results | None:
  """Trains as `train_steps`, again from the last checkpoint where that raises RollBack."""
  while True:
    try:
      return train_steps(run, state, progress, guards)
    except RollBack as found:
      skipped = {*progress.skipped, found.batch}
    guards.checkpoints.wait()
    state, progress = start(run, guards.checkpoints)
    progress.skipped = sorted(skipped.union(progress.skipped))


def train_steps(run: Run, state: TrainState, progress: Progress, guards: Guards) -> Results | None:
  """Trains to the end of the run, or to a signal (None).

  THE ORDER MATTERS: what is not finite is neither written nor saved, a step's metrics are
  written before the run stops, and an evaluation is part of the checkpoint after it.

  Raises:
    RollBack: if the run is to go back to its last checkpoint.
    UserError: if it cannot continue.
  """
  config, inputs, program = run.config, run.inputs, run.program
  first, last = progress.step, inputs.num_steps
  logging = Every(config.log_every_steps, last)
  evaluating = Every(config.eval_every_epochs * inputs.steps_per_epoch, last)
  saving = Every(config.checkpoints.every_steps)
  keeping, picturing = kept_steps(run), Every(config.filters_every_steps)
  batches = batches_from(config, inputs, progress.batch_of(first + 1), progress.skipped)
  try:
    with (
      MetricWriter(run.workdir, first, guards.trackers) as writer,
      closing(batches),
      closing(Profile(config.profile, run.workdir)) as profile,
      ProgressBar(first, last, config.model.num_classes) as bar,
    ):
      if evaluating.due(first) and not progress.results:  # a signal came before or during it
        evaluate_and_save(run, state, progress, guards, writer, bar)
      watch = Stopwatch(config.data.batch_size)
      for step, batch in enumerate(watch.waits(to_devices(batches, run.mesh)), first + 1):
        rate = inputs.schedule(step - 1)
        if step == first + 1:
          check_memory(run, (state, program.teacher_params, batch, rate))
        profile.before(step)
        state = program.train(state, program.teacher_params, batch, rate)
        profile.after(step, state)
        progress.step, progress.results = step, {}
        watch.count(state)
        stop = guards.pulse()
        if logging.due(step):
          guards.nonfinite.check(state, progress)
          state = log(run, state, step, guards, writer, watch, bar)
        if picturing.due(step):
          with watch.paused():
            show_filters(run, state, progress, guards, writer)
        if stop:
          raise Stopped
        if evaluating.due(step):
          with watch.paused():
            evaluate_and_save(run, state, progress, guards, writer, bar)
        elif saving.due(step) or keeping.due(step):
          save(run, state, progress, guards)
        bar.advance()
  except Stopped:
    save(run, state, progress, guards)
    return None
  except DataError:
    if progress.step > first:
      save_before_error(run, state, progress, guards)
    raise
  guards.nonfinite.check_result(state, progress)
  return progress.results


def log(
  run: Run,
  state: TrainState,
  step: int,
  guards: Guards,
  writer: MetricWriter,
  watch: Stopwatch,
  bar: ProgressBar,
) -> TrainState:
  """Writes and shows the means since the last line, which begin anew; waits for the device."""
  speed = watch.read()
  with watch.paused():  # what it compiles and computes is no training
    norm = run.program.parameter_norm(state.params)
    sums, skipped_steps, bad_samples, norm = jax.device_get(
      (state.metrics, state.bad_steps, state.bad_samples, norm)
    )
    data = run.config.data
    check_bad_fraction(
      int(bad_samples), step * data.batch_size, run.inputs.train_source, data.max_bad_fraction
    )
    means = metrics.means(sums)
    guards.nonfinite.count_skipped(step, int(skipped_steps), finite=bool(means))
    values = {
      "epoch": step / run.inputs.steps_per_epoch,
      "learning_rate": run.inputs.schedule(step - 1),
      **means,
      "parameter_norm": float(norm),
      "skipped_steps": int(skipped_steps),
      "bad_samples": int(bad_samples),
    }
    writer.write("metrics", step, values)
    writer.write("performance", step, speed)
    bar.show(values | speed)
    return state.replace(metrics=run.program.empty_metrics())


def show_filters(
  run: Run, state: TrainState, progress: Progress, guards: Guards, writer: MetricWriter
) -> None:
  """Writes pictures of the filters to TensorBoard."""
  guards.nonfinite.check(state, progress)
  write_filter_images(writer, run, state, progress.step)


def evaluate_and_save(
  run: Run,
  state: TrainState,
  progress: Progress,
  guards: Guards,
  writer: MetricWriter,
  bar: ProgressBar,
) -> None:
  """Evaluates the parameters, and their moving averages if there are any; then saves."""
  guards.nonfinite.check(state, progress)
  results = evaluate(run, state.params, guards)
  if state.ema:
    averaged = evaluate(run, state.ema, guards)
    results |= {f"ema_{name}": averaged[name] for name in task_of(run.config.model).metrics}
  epoch = progress.step / run.inputs.steps_per_epoch
  values = {"epoch": epoch} | {f"eval_{name}": value for name, value in results.items()}
  speed = {"eval_images_per_second": values.pop("eval_images_per_second")}
  writer.write("metrics", progress.step, values)
  writer.write("performance", progress.step, speed)
  # The number of steps is rounded; the last one is the end of the last epoch.
  shown = run.config.num_epochs if progress.step == run.inputs.num_steps else epoch
  bar.print_evaluation(shown, results)
  progress.results = results
  save(run, state, progress, guards)


def evaluate(run: Run, params: Params, guards: Guards) -> Results:
  """Evaluates parameters on the run's evaluation split.

  Raises:
    Stopped: if a signal comes; there may not be the time for the rest.
  """
  with explain_shortage(lambda: ["a smaller --config.data.eval_batch_size"]):
    return evaluate_params(
      run.program.evaluate,
      run.program.gather(params),
      run.inputs.eval_source,
      run.inputs.eval_transform,
      task=task_of(run.config.model),
      batch_size=run.config.data.eval_batch_size,
      mesh=run.mesh,
      reading=run.inputs.reading,
      on_batch=guards.pulse_or_stop,
    )


def save(run: Run, state: TrainState, progress: Progress, guards: Guards) -> None:
  """Saves the run, unless its last step was not finite or its directory is gone."""
  together(guards.lock.confirm_at_once)
  guards.nonfinite.check(state, progress)
  keep = kept_steps(run).due(progress.step)
  save_run(guards.checkpoints, state, progress, run.description, keep=keep)
  guards.nonfinite.saved(progress.step)
  guards.watchdog.advance()


def save_before_error(run: Run, state: TrainState, progress: Progress, guards: Guards) -> None:
  """Saves the run, of one process, before an error ends it.

  Other processes would have to take part in saving, and do not know of the error.
  """
  if jax.process_count() == 1:
    save(run, state, progress, guards)
    say(f"Everything up to step {progress.step} is saved; the same command continues from there")


def kept_steps(run: Run) -> Every:
  """The steps whose checkpoints are written whatever else is due, and never removed."""
  return Every(run.config.checkpoints.keep_every_epochs * run.inputs.steps_per_epoch)
