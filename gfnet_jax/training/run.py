"""What never changes during a run, and how it begins or continues."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from clu.parameter_overview import get_parameter_overview
from flax import nnx
from jax.sharding import Mesh

from gfnet_jax.buckets import BucketPath, as_directory
from gfnet_jax.checkpoints.finding import find_checkpoint, list_steps
from gfnet_jax.checkpoints.model import model_metadata
from gfnet_jax.checkpoints.store import WRITE_TIMEOUT, Checkpoints
from gfnet_jax.distributed import agree, together
from gfnet_jax.errors import UserError
from gfnet_jax.files import write_atomically
from gfnet_jax.inference.saved_model import check_source, find_pretrained
from gfnet_jax.models.precision import compute_dtype
from gfnet_jax.models.variants import create_model
from gfnet_jax.sharding import check_batch_size
from gfnet_jax.training.agreement import check_agreement, describe_data, describe_program
from gfnet_jax.training.choices import choose_model
from gfnet_jax.training.config_rules import check_config, check_groups, check_steps
from gfnet_jax.training.initialize import initial_params
from gfnet_jax.training.inputs import Inputs, open_inputs
from gfnet_jax.training.lock import Lock
from gfnet_jax.training.mirror import Mirror
from gfnet_jax.training.program import Program, build_program, model_config
from gfnet_jax.training.resume import Progress, restore_run, trained_classes
from gfnet_jax.training.step import TrainState
from gfnet_jax.training.tasks import learning_of
from gfnet_jax.training.trackers import check_trackers
from gfnet_jax.views.filters import check_has_filters
from gfnet_jax.weights.pretrained import read_config


class Run(NamedTuple):
  """What never changes during a run.

  Attributes:
    config: with everything that was left open filled in.
    workdir: a local directory, whose files are in the work directory or appear there.
    home: the work directory, itself or in a store.
    mesh: of all devices.
    inputs: its data.
    program: its compiled functions.
    description: what all its checkpoints say; see `resume.save_run`.
  """

  config: ml_collections.ConfigDict
  workdir: Path
  home: Path | BucketPath
  mesh: Mesh
  inputs: Inputs
  program: Program
  description: dict[str, Any]


def check(config: ml_collections.ConfigDict) -> None:
  """Raises UserError for mistakes that show without the data, which may take long to open.

  Also, in every process, if the processes of the run are not to do the same. The network is
  chosen if the config leaves it open; see `choose_model`.
  """
  check_agreement(describe_program(config))
  together(lambda: _check(config))


def _check(config: ml_collections.ConfigDict) -> None:
  check_config(config, may_be_open=True)
  choose_model(config)
  learning_of(config.model).check(config)
  model = model_config(config) | {"num_classes": config.model.num_classes or 1}
  dtype = compute_dtype(config.precision)
  abstract = nnx.eval_shape(lambda: create_model(**model, dtype=dtype))
  if config.filters_every_steps:
    check_has_filters(abstract.trunk)
  check_trackers(config)
  for source in (config.init_checkpoint, config.distillation.teacher):
    if source:
      check_source(source)


def prepare(config: ml_collections.ConfigDict, mirror: Mirror, mesh: Mesh) -> Run:
  """Puts a run together, in the order in which it can go wrong; writes nothing.

  Args:
    config: of the run.
    mirror: of its work directory.
    mesh: of all devices.

  Raises:
    UserError: for anything that cannot work; in every process if one finds it in its data.
  """
  if automatic := config.get("automatic"):  # the data tell how large a batch is
    inputs = together(lambda: open_inputs(config, class_order(config, mirror.home), mesh.size))
  check_batch_size(config.data.batch_size, config.optimizer.accumulate_steps, mesh)
  check_groups(config, mesh)
  if not automatic:
    inputs = together(lambda: open_inputs(config, class_order(config, mirror.home), mesh.size))
  class_names = inputs.train_source.class_names
  check_agreement(describe_data(inputs.fingerprints, class_names))
  check_steps(config, inputs.num_steps)
  program = build_program(config, mesh)
  description = model_metadata(model_config(config), class_names)
  description |= {"config": config.to_dict(), "data": inputs.fingerprints}
  return Run(config, mirror.directory, mirror.home, mesh, inputs, program, description)


def class_order(config: ml_collections.ConfigDict, workdir: Path | BucketPath) -> list[str] | None:
  """The classes of what the run continues, learns or starts from, in the order of their labels.

  None if that names none. The data may have them in another order, see `in_class_order`.
  """
  if names := trained_classes(workdir / "checkpoints"):
    return names
  for source in (config.distillation.teacher, config.init_checkpoint):
    if source and (pretrained := find_pretrained(source)):
      if names := read_config(pretrained)["class_names"]:
        return names
    elif source and as_directory(source).is_dir():
      directory, _ = find_checkpoint(source)
      if names := trained_classes(directory):
        return names
  return None


def open_checkpoints(config: ml_collections.ConfigDict, mirror: Mirror, lock: Lock) -> Checkpoints:
  """The checkpoints of a run, which fail before the watchdog would end it.

  Each is complete only after the metrics before it are where they are kept.
  """

  def confirm() -> None:
    mirror.flush()
    lock.confirm()

  timeout = min(WRITE_TIMEOUT, config.stall_timeout / 2 or WRITE_TIMEOUT)
  keep_last = config.checkpoints.keep_last
  directory = mirror.home / "checkpoints"
  return Checkpoints(directory, keep_last=keep_last, timeout=timeout, confirm=confirm)


def begin(run: Run) -> TrainState:
  """The state before the first step; writes nothing.

  Raises:
    UserError: if `init_checkpoint` is not for the run's network.
  """
  params = initial_params(run.program.make_model, run.config.init_checkpoint, run.mesh)
  return run.program.init(params)


def start(
  run: Run, checkpoints: Checkpoints, fresh: TrainState | None = None
) -> tuple[TrainState, Progress]:
  """The state of the newest whole checkpoint, or a fresh one, of `begin` if it is not given."""
  program = run.program
  restored = restore_run(checkpoints, run.description, program.shapes, program.shardings)
  return restored or (fresh or begin(run), Progress())


def is_new(workdir: Path | BucketPath) -> bool:
  """Whether there is no checkpoint to continue from."""
  return bool(agree(not list_steps(workdir / "checkpoints")))


def write_config(run: Run) -> None:
  """Writes the config with its overrides, and a table of all parameters."""
  if jax.process_index() != 0:
    return
  table = get_parameter_overview(run.program.shapes.params, include_stats=False)
  texts = {"config.json": run.config.to_json(indent=2), "parameters.txt": table}
  for name, text in texts.items():
    path = run.workdir / name
    try:
      write_atomically(path, text + "\n")
    except OSError as error:
      raise UserError(f"cannot write {path} ({error.strerror}); make room") from error
