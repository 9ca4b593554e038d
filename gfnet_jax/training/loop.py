"""A training run: from a config and a work directory to a trained model."""

import functools
from pathlib import Path

import jax
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from gfnet_jax.data.pipeline import Reading, Share, check_fills_a_batch, train_batches
from gfnet_jax.data.sources import check_classes, open_source
from gfnet_jax.data.transforms import EvalTransform, TrainTransform
from gfnet_jax.files import make_directory, write_atomically
from gfnet_jax.models.functional import split
from gfnet_jax.models.variants import create_model
from gfnet_jax.training.checkpoint import Checkpoints, model_metadata
from gfnet_jax.training.console import ProgressBar, Stopwatch, describe_run
from gfnet_jax.training.evaluate import evaluate
from gfnet_jax.training.metrics import TrainMetrics
from gfnet_jax.training.optimizer import make_optimizer, make_schedule
from gfnet_jax.training.precision import compute_dtype
from gfnet_jax.training.resume import restore_run, state_to_trees
from gfnet_jax.training.sharding import check_batch_size, make_mesh, replicated, to_devices
from gfnet_jax.training.step import init_state, make_eval_step, make_train_step
from gfnet_jax.training.writer import MetricWriter


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, float | int]:
  """Trains, or continues the run that the work directory holds.

  Args:
    config: one of configs/; the fields are explained in configs/digits.py.
    workdir: receives config.json, metrics.jsonl, performance.jsonl, tensorboard/ and
      checkpoints/.

  Returns:
    The last evaluation: top1 and top5 in percent, loss, images, images_per_second.

  Raises:
    UserError: for anything in the config, the data or the directory that cannot work.
  """
  mesh = make_mesh()
  with jax.set_mesh(mesh):
    return _Run(config, workdir, mesh).run()


class _Run:
  """The parts of one run, put together in the order in which they can go wrong."""

  def __init__(self, config: ml_collections.ConfigDict, workdir: Path, mesh: Mesh):
    self.config, self.workdir, self.mesh = config, workdir, mesh
    check_batch_size(config.data.batch_size, mesh)
    self.reading = Reading(**config.data.reading)
    self.train_source = open_source(config.data, config.data.train_split)
    check_fills_a_batch(self.train_source, config.data.batch_size)
    self.eval_source = open_source(config.data, config.data.eval_split)
    check_classes(self.train_source, config.model.num_classes)

    dtype = compute_dtype(config.precision)

    def make_model() -> nnx.Module:
      return create_model(**config.model, dtype=dtype, rngs=nnx.Rngs(config.seed))

    structure, shapes = split(nnx.eval_shape(make_model))
    self.train_transform = TrainTransform(image_size=config.model.image_size, **config.augment)
    self.eval_transform = EvalTransform(config.model.image_size)

    self.steps_per_epoch = len(self.train_source) / config.data.batch_size
    self.num_steps = max(1, round(config.num_epochs * self.steps_per_epoch))
    self.schedule = make_schedule(config, self.steps_per_epoch)
    optimizer = make_optimizer(config.optimizer)
    self.train_step = make_train_step(structure, optimizer, config, mesh)
    self.eval_step = make_eval_step(structure, mesh)

    make_directory(workdir)
    self.checkpoints = Checkpoints(workdir / "checkpoints", keep_last=config.keep_checkpoints)
    init = functools.partial(init_state, make_model, optimizer, mesh)
    self.state, self.results = restore_run(self.checkpoints, config, init)
    self.first_step = int(self.state.step)
    self.writer = MetricWriter(workdir, self.first_step)
    write_atomically(workdir / "config.json", config.to_json(indent=2) + "\n")
    describe_run(config, workdir, shapes, self.first_step, self.num_steps)

  def run(self) -> dict[str, float | int]:
    """Trains to the end; returns the last evaluation."""
    batches = train_batches(
      self.train_source,
      self.train_transform,
      seed=self.config.seed,
      share=Share(self.config.data.batch_size, jax.process_index(), jax.process_count()),
      first_step=self.first_step,
      num_steps=self.num_steps,
      reading=self.reading,
    )
    watch = Stopwatch()
    with ProgressBar(self.first_step, self.num_steps) as bar:
      for step, batch in enumerate(to_devices(batches, self.mesh), self.first_step + 1):
        self.state = self.train_step(self.state, batch, self.schedule(step - 1))
        last = step == self.num_steps
        if step % self.config.log_every_steps == 0 or last:
          bar.show(self._log(step, watch))
        if last or self._ends_period(step, self.config.eval_every_epochs):
          with watch.paused():
            bar.print_evaluation(step / self.steps_per_epoch, self._evaluate(step))
            self._save(step)
        watch.count(self.config.data.batch_size)
        bar.advance()
    self.checkpoints.close()
    self.writer.close()
    return self.results

  def _ends_period(self, step: int, epochs: float) -> bool:
    """Whether a multiple of this many epochs ends at this step, rounded to steps."""
    period = epochs * self.steps_per_epoch
    return step == round(round(step / period) * period)

  def _log(self, step: int, watch: Stopwatch) -> dict[str, float]:
    """Writes the means since the last line; waits for the device."""
    means = {name: float(value) for name, value in self.state.metrics.compute().items()}
    empty = jax.device_put(TrainMetrics.empty(), replicated(self.mesh))
    self.state = self.state.replace(metrics=empty)
    values = {
      "epoch": step / self.steps_per_epoch,
      "learning_rate": self.schedule(step - 1),
      **{f"train_{name}": value for name, value in means.items()},
    }
    speed = {"images_per_second": watch.images_per_second()}
    self.writer.write("metrics", step, values)
    self.writer.write("performance", step, speed)
    return values | speed

  def _evaluate(self, step: int) -> dict[str, float | int]:
    self.results = evaluate(
      self.eval_step,
      self.state.params,
      self.eval_source,
      self.eval_transform,
      batch_size=self.config.data.eval_batch_size,
      mesh=self.mesh,
      reading=self.reading,
    )
    values = {f"eval_{name}": value for name, value in self.results.items()}
    speed = {"eval_images_per_second": values.pop("eval_images_per_second")}
    self.writer.write("metrics", step, values)
    self.writer.write("performance", step, speed)
    return self.results

  def _save(self, step: int) -> None:
    self.checkpoints.save(
      step,
      state_to_trees(self.state),
      {
        **model_metadata(self.config.model.to_dict(), self.train_source.class_names),
        "config": self.config.to_dict(),
        "metrics": self.results,
        "samples_seen": step * self.config.data.batch_size,
      },
    )
