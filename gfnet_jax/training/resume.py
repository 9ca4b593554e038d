"""Where a run stands: saving it, and continuing from its newest checkpoint that is whole."""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from gfnet_jax.buckets import BucketPath
from gfnet_jax.checkpoints.checksums import DamagedError
from gfnet_jax.checkpoints.finding import list_steps, set_aside
from gfnet_jax.checkpoints.reading import read_metadata, restore, saved_shapes, verify
from gfnet_jax.checkpoints.remote import on_disk
from gfnet_jax.checkpoints.store import Checkpoints
from gfnet_jax.console import say
from gfnet_jax.data.order import nth_batch
from gfnet_jax.data.sources.fingerprint import describe_classes, describe_images
from gfnet_jax.distributed import agree, barrier, together
from gfnet_jax.errors import UserError
from gfnet_jax.models.fit import describe_misfits
from gfnet_jax.sharding import replicated
from gfnet_jax.training import metrics
from gfnet_jax.training.config_rules import flatten
from gfnet_jax.training.same_run import check_same_run
from gfnet_jax.training.step import TrainState


@dataclasses.dataclass
class Progress:
  """How far a run has come, besides its state on the devices.

  Attributes:
    step: number of steps done.
    results: of the evaluation after this step; {} if there was none.
    skipped: indices of the batches that the run leaves out, ascending.
  """

  step: int = 0
  results: dict[str, float | int] = dataclasses.field(default_factory=dict)
  skipped: list[int] = dataclasses.field(default_factory=list)

  def batch_of(self, step: int) -> int:
    """The index of the global batch that a step (1, 2, ...) takes."""
    return nth_batch(step - 1, self.skipped)

  def to_metadata(self) -> dict[str, Any]:
    """What a checkpoint says of it, besides the step, which the store adds."""
    return {
      "metrics": self.results,
      "evaluated": bool(self.results),
      "next_batch": self.batch_of(self.step + 1),
      "skipped_batches": self.skipped,
    }

  @classmethod
  def from_metadata(cls, metadata: dict[str, Any]) -> "Progress":
    """The progress that the metadata of a checkpoint describes."""
    return cls(metadata["step"], metadata["metrics"], metadata["skipped_batches"])


def save_run(
  checkpoints: Checkpoints,
  state: TrainState,
  progress: Progress,
  description: dict[str, Any],
  *,
  keep: bool = False,
) -> None:
  """Saves a run in the background, so that `restore_run` can continue it.

  Args:
    checkpoints: where.
    state: after progress.step steps.
    progress: how far the run is.
    description: what all checkpoints of a run say: `model_metadata`, its "config", and the
      `fingerprint` of its "data".
    keep: whether the checkpoint is to outlive later ones.
  """
  metadata = {**description, **progress.to_metadata(), "keep": keep}
  checkpoints.save(progress.step, state_to_trees(state), metadata)


def restore_run(
  checkpoints: Checkpoints,
  description: dict[str, Any],
  shapes: TrainState,
  shardings: TrainState,
) -> tuple[TrainState, Progress] | None:
  """The state to continue from, and how far it is; None if there is nothing to restore.

  Damaged checkpoints are named, set aside, and passed over for the ones before.

  Args:
    checkpoints: of the run.
    description: of the run, which must be the one that it began with; see `save_run`.
    shapes: of the state, jax.ShapeDtypeStruct.
    shardings: of the state.

  Raises:
    UserError: if the checkpoints were made with another config or on other data, or if all
      are damaged.
  """
  directory = checkpoints.directory
  step = agree(together(lambda: _step_to_restore(directory) if jax.process_index() == 0 else -1))
  if step < 0:
    return None
  metadata = together(lambda: read_metadata(directory, step))
  if "config" not in metadata:
    raise UserError(
      f"{directory.parent} holds converted weights, not a run; start from them in another work "
      f"directory with --config.init_checkpoint={directory.parent}"
    )
  now = flatten(json.loads(json.dumps(description["config"])))  # as JSON has it
  images = _compare_data(metadata, description)
  check_same_run(flatten(metadata["config"]), now, directory.parent, images)
  _warn_of_data(metadata, description)
  with on_disk(directory, step) as local:
    state = _restore_state(local, step, shapes, shardings, directory.parent)
  barrier("restored")
  return state, Progress.from_metadata(metadata)


def earlier_config(directory: Path | BucketPath) -> dict[str, Any]:
  """The config in the newest checkpoint that has one; {} if there is none.

  Args:
    directory: of the checkpoints of a run; there may be none yet.
  """
  return next((found["config"] for found in _metadata(directory) if "config" in found), {})


def trained_classes(directory: Path | BucketPath) -> list[str] | None:
  """The class names of the newest checkpoint that has some, in the order of their labels.

  Args:
    directory: of the checkpoints of a run; there may be none yet.
  """
  names = (found.get("class_names") for found in _metadata(directory))
  return next(filter(None, names), None)


def _metadata(directory: Path) -> Iterator[dict[str, Any]]:
  """What the checkpoints say of themselves, the newest first, without those that are damaged."""
  for step in list_steps(directory)[::-1]:
    with contextlib.suppress(DamagedError):  # which `restore_run` names and sets aside
      yield read_metadata(directory, step)


def _compare_data(before: dict[str, Any], now: dict[str, Any]) -> str | None:
  """How the training data of two descriptions differ; see `check_same_run`."""
  classes = describe_classes(before["class_names"], now["class_names"])
  if "data" not in before:  # of an older version
    return classes or None
  images = describe_images(before["data"]["train"], now["data"]["train"])
  return "; ".join(filter(None, (classes, images))) or images


def _warn_of_data(before: dict[str, Any], now: dict[str, Any]) -> None:
  """Says what is no reason to refuse: a damaged image of the evaluation may have been removed."""
  if "data" not in before:
    say(
      "warning: an older version began this run and did not record its images: whether they are "
      "still the same is not checked; from its next checkpoint on it is"
    )
  elif other := describe_images(before["data"]["eval"], now["data"]["eval"]):
    say(f"warning: evaluated on {other}; compare no results across this point")


def _restore_state(
  directory: Path,
  step: int,
  shapes: TrainState,
  shardings: TrainState,
  workdir: Path | BucketPath,
) -> TrainState:
  """Restores a state; metrics that the checkpoint lacks start anew, with one warning.

  The work directory is where the checkpoint is, of which the directory may hold a copy.

  Raises:
    UserError: if the parameters are those of another network.
  """
  expected = {name: shape.shape for name, shape in shapes.params.items()}
  misfits = describe_misfits(saved_shapes(directory, step, "params"), expected)
  if misfits:
    raise UserError(
      f"{workdir} holds a run of another network than config.model: {misfits}; set "
      "another --workdir, or config.model or the code of the model back to continue"
    )
  target = jax.tree.map(_with_sharding, shapes, shardings)
  trees = state_to_trees(target)
  saved = saved_shapes(directory, step, "training").get("metrics", {})
  whole = replicated(shardings.step.mesh)
  # All that were saved, as Orbax restores a tree as it is; those that are gone are dropped.
  wanted = {name: target.metrics[name] for name in saved if name in target.metrics}
  others = {name: saved[name] for name in saved if name not in target.metrics}
  others = jax.tree.map(lambda x: _with_sharding(x, whole), others)
  trees["training"]["metrics"] = wanted | others
  state = trees_to_state(restore(directory, step, trees))
  new = target.metrics.keys() - wanted.keys()
  if new:
    names = ", ".join(sorted(new))
    say(f"warning: this run began without the metric {names}, whose next mean starts here")
  fresh = jax.device_put(metrics.empty(target.params), whole)
  return state.replace(
    metrics={name: (state.metrics if name in wanted else fresh)[name] for name in target.metrics}
  )


def _with_sharding(shape: jax.ShapeDtypeStruct, sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def state_to_trees(state: TrainState) -> dict[str, Any]:
  """A state as the trees of a checkpoint: models are read without the rest."""
  fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
  params, ema = fields.pop("params"), fields.pop("ema")
  return {"params": params, **({"ema": ema} if ema else {}), "training": fields}


def trees_to_state(trees: dict[str, Any]) -> TrainState:
  """The inverse of `state_to_trees`."""
  return TrainState(params=trees["params"], ema=trees.get("ema", {}), **trees["training"])


def _step_to_restore(directory: Path | BucketPath) -> int:
  """As `newest_whole`; a run all of whose checkpoints are damaged is not begun anew in silence.

  Raises:
    UserError: if there are none but damaged ones, now or since an earlier attempt.
  """
  step = newest_whole(directory)
  if step < 0 and any(path.name.startswith("damaged-") for path in _entries(directory)):
    raise UserError(
      f"no whole checkpoint is left in {directory}, only damaged ones that were set aside "
      "(damaged-...); bring back a copy of one, set another --workdir to begin anew, or remove "
      "them to begin anew here"
    )
  return step


def _entries(directory: Path | BucketPath) -> Iterable[Path | BucketPath]:
  return directory.iterdir() if directory.is_dir() else ()


def newest_whole(directory: Path | BucketPath) -> int:
  """The step of the newest undamaged checkpoint; -1 if there is none.

  Damaged ones after it are named and set aside.
  """
  for step in reversed(list_steps(directory)):
    try:
      verify(directory, step)
    except DamagedError as error:
      print(f"warning: {error}; set aside, trying the one before", flush=True)
      set_aside(directory, step)
    else:
      return step
  return -1
