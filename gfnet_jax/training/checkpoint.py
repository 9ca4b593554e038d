"""Checkpoints that keep their promise: asynchronous, atomic, checksummed, verified.

Layout of a directory of checkpoints:

    00001200/            one checkpoint, named after its step; complete as soon as it exists
      metadata.json      step, model, class names, whole config, metrics, position in the data
      params/ ...        trees of arrays, written by Orbax
      sha256.json        the SHA-256 sum of every other file
    .pending-00001300/   being written; never read, removed by the next run

Orbax restores flipped bits without a word, hence the sums.
"""

import concurrent.futures
import dataclasses
import json
import math
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from gfnet_jax.errors import UserError
from gfnet_jax.files import make_directory
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.variants import create_model
from gfnet_jax.training.checksums import (
  DamagedError,
  flush_to_disk,
  verify_checksums,
  write_checksums,
)
from gfnet_jax.training.distributed import barrier
from gfnet_jax.training.precision import compute_dtype

PyTree = Any
METADATA = "metadata.json"
WRITE_TIMEOUT = 1200.0  # seconds, of Orbax
_STEP = re.compile(r"\d{8,}")


@dataclasses.dataclass(frozen=True)
class SavedModel:
  """A model read from a checkpoint.

  Attributes:
    model: with the saved parameters.
    config: the arguments of `create_model` that describe it.
    class_names: of the classes in order of their index, or None.
    step: of the training run; 0 for imported weights.
    run_config: the whole config of the training run, or None for imported weights.
    precision: for `matmul_precision`; the model's own dtype follows it already.
  """

  model: nnx.Module
  config: dict
  class_names: list[str] | None
  step: int
  run_config: dict | None
  precision: str = "default"


class Checkpoints:
  """The checkpoints of one run: saves in the background and keeps those worth keeping.

  Kept are the newest, the best, and those whose metadata says "keep": true.
  A save that fails, on a full disk for instance, is reported and does not end the run.
  All processes of a run call the same methods; process 0 completes what all have written.

  Args:
    directory: created if missing; shared by all processes.
    keep_last: how many of the newest to keep.
    timeout: seconds after which a process that has not written its part fails the save.
    best_metric: key in the metadata's "metrics" by which the best is the greatest.

  Raises:
    UserError: if the directory cannot be written.
  """

  def __init__(
    self,
    directory: Path,
    *,
    keep_last: int = 2,
    timeout: float = WRITE_TIMEOUT,
    best_metric: str = "top1",
  ):
    self.directory, self._keep_last, self._best_metric = directory, keep_last, best_metric
    self._timeout = timeout
    if jax.process_index() == 0:
      make_directory(directory)
      self._remove_unfinished()
    barrier("checkpoints")
    self._writer = _make_writer(timeout)
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    self._commit: concurrent.futures.Future | None = None
    self._failure: str | None = None

  def save(self, step: int, trees: Mapping[str, PyTree], metadata: Mapping[str, Any]) -> None:
    """Saves trees of arrays by name; returns once they are copied, writes in the background."""
    self.wait()
    if jax.process_index() == 0:
      self._remove_unfinished()  # what a failure left would fill the disk
    pending = self.directory / f".pending-{step:08d}"
    metadata = {"step": step, **metadata}
    try:
      self._writer.save(pending.absolute(), args=_save_args(trees), force=True)
    except Exception as error:  # Orbax and TensorStore raise many kinds
      self._report(step, error)
    else:
      self._commit = self._thread.submit(self._finish, pending, step, metadata)

  def restore(self, step: int, trees: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """See `restore`."""
    return restore(self.directory, step, trees)

  def wait(self) -> None:
    """Waits until the checkpoint being written is complete or has failed."""
    if self._commit is not None:
      commit, self._commit = self._commit, None
      commit.result()

  def close(self) -> None:
    """Completes the checkpoint being written and ends the background threads.

    Raises:
      UserError: if the last checkpoint could not be written.
    """
    self.wait()
    self._thread.shutdown()
    self._writer.close()
    if jax.process_index() == 0:
      self._remove_unfinished()
    if self._failure:
      raise UserError(f"{self._failure}; make room and start the run again")

  def _finish(self, pending: Path, step: int, metadata: dict) -> None:
    try:
      self._writer.wait_until_finished()
      if jax.process_index() == 0:
        _commit(pending, _path(self.directory, step), metadata)
        self._remove_old()
      self._failure = None
    except Exception as error:  # as above
      self._report(step, error)

  def _report(self, step: int, error: Exception) -> None:
    reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    self._failure = f"the checkpoint of step {step} could not be written to {self.directory}"
    self._failure += f" ({reason[:200]})"
    if jax.process_index() == 0:
      print(f"warning: {self._failure}; the next one will be tried", flush=True)
    self._writer = _make_writer(self._timeout)  # the old one would raise the error once more

  def _remove_unfinished(self) -> None:
    """Clears up what earlier runs or failures left; never while something is being written."""
    for unfinished in self.directory.glob(".pending-*"):
      shutil.rmtree(unfinished, ignore_errors=True)
    for replaced in self.directory.glob(".replaced-*"):
      final = self.directory / replaced.name.removeprefix(".replaced-")
      if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
      else:  # killed between taking one away and putting the other in its place
        replaced.rename(final)

  def _remove_old(self) -> None:
    steps = list_steps(self.directory)
    keep = {*steps[-self._keep_last :], best_step(self.directory, self._best_metric)}
    for step in steps:
      if step in keep or read_metadata(self.directory, step).get("keep"):
        continue
      # Out of sight first: a removal cut off half-way must not leave a damaged checkpoint.
      doomed = self.directory / f".pending-{step:08d}"
      _path(self.directory, step).rename(doomed)
      shutil.rmtree(doomed, ignore_errors=True)  # else the next save tries again


def list_steps(directory: Path) -> list[int]:
  """The steps of the complete checkpoints in a directory, ascending."""
  if not directory.is_dir():
    return []
  return sorted(int(path.name) for path in directory.iterdir() if _STEP.fullmatch(path.name))


def best_step(directory: Path, metric: str) -> int | None:
  """The step with the greatest metric, the later one of equals; None without any."""
  values = {}
  for step in list_steps(directory):
    value = read_metadata(directory, step).get("metrics", {}).get(metric)
    if value is not None:
      values[step] = value
  return max(values, key=lambda step: (values[step], step), default=None)


def read_metadata(directory: Path, step: int) -> dict:
  """The metadata of a checkpoint; {} if it is damaged, which `restore` will report."""
  try:
    return json.loads((_path(directory, step) / METADATA).read_text())
  except (OSError, ValueError):
    return {}


def verify(directory: Path, step: int) -> None:
  """Raises DamagedError if a file of a checkpoint is missing, altered or unexpected."""
  verify_checksums(_path(directory, step))


def set_aside(directory: Path, step: int) -> None:
  """Renames a damaged checkpoint, so that it counts neither as the newest nor as the best."""
  _path(directory, step).rename(directory / f"damaged-{step:08d}-{time.time_ns()}")


def restore(directory: Path, step: int, trees: Mapping[str, PyTree]) -> dict[str, PyTree]:
  """Restores trees of arrays by name; to be verified before.

  Args:
    directory: of the checkpoints.
    step: which one.
    trees: name to a tree of jax.ShapeDtypeStruct, with shardings if several devices.
  """
  args = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
  path = _path(directory, step).absolute()
  with _make_writer() as reader:
    return dict(reader.restore(path, args=ocp.args.Composite(**args)))


def find_checkpoint(directory: Path, which: str = "last") -> tuple[Path, int]:
  """Finds a checkpoint in a work directory, a directory of checkpoints, or itself.

  Args:
    directory: what the user named.
    which: "last", "best" or a step.

  Returns:
    (directory of checkpoints, step).

  Raises:
    UserError: if there is none.
  """
  if _STEP.fullmatch(directory.name) and (directory / METADATA).is_file():
    return directory.parent, int(directory.name)
  nested = directory / "checkpoints"
  directory = nested if nested.is_dir() else directory
  steps = list_steps(directory)
  if not steps:
    raise UserError(
      f"no checkpoint in {directory}; expected a work directory of train.py, or a directory "
      "written by convert_torch_weights.py"
    )
  if which == "last":
    return directory, steps[-1]
  step = best_step(directory, "top1") if which == "best" else which
  if step is None:
    raise UserError(f"no checkpoint in {directory} was evaluated; take last instead of best")
  if str(step) not in map(str, steps):
    found = ", ".join(map(str, steps))
    raise UserError(f"no checkpoint {which!r} in {directory}, expected last, best or {found}")
  return directory, int(step)


def save_model(
  directory: Path | str,
  model: nnx.Module,
  config: Mapping[str, Any],
  class_names: list[str] | None = None,
) -> None:
  """Writes the parameters of a model as a checkpoint that all scripts take.

  Args:
    directory: where; created if missing, and must hold no checkpoint.
    model: of which the parameters are saved.
    config: the arguments of `create_model` that describe it.
    class_names: of the classes in order of their index.

  Raises:
    UserError: if the directory cannot be written or holds a checkpoint.
  """
  directory = Path(directory)
  if list_steps(directory / "checkpoints") or list_steps(directory):
    raise UserError(f"{directory} holds checkpoints already; choose another directory")
  new = not directory.exists()
  checkpoints = Checkpoints(directory / "checkpoints")
  _, params = split(model)
  checkpoints.save(0, {"params": params}, model_metadata(config, class_names))
  try:
    checkpoints.close()
  except UserError:
    shutil.rmtree(directory if new else checkpoints.directory, ignore_errors=True)
    raise


def load_model(
  directory: Path | str, which: str = "last", *, precision: str | None = None, ema: bool = False
) -> SavedModel:
  """Reads a model from a checkpoint, with verification.

  Args:
    directory: a work directory, a directory of checkpoints, or one checkpoint.
    which: "last", "best" or a step.
    precision: see `compute_dtype`; None for that of the training run, or "default".
    ema: take the moving averages of the parameters.

  Raises:
    UserError: if there is no checkpoint, it is damaged, or the precision is unknown.
  """
  directory, step = find_checkpoint(Path(directory), which)
  try:
    verify(directory, step)
    metadata = read_metadata(directory, step)
    precision = precision or metadata.get("config", {}).get("precision", "default")
    dtype = compute_dtype(precision)
    structure, shapes = split(
      nnx.eval_shape(lambda: create_model(**metadata["model"], dtype=dtype))
    )
    tree = "ema" if ema else "params"
    if not (_path(directory, step) / tree).is_dir():
      raise UserError(f"{directory} holds no averaged weights; train with ema_decay, or omit --ema")
    params = restore(directory, step, {tree: on_one_device(shapes)})[tree]
  except DamagedError as error:
    others = [other for other in list_steps(directory) if other != step]
    advice = f"take {_path(directory, others[-1])}" if others else "there is no other"
    raise UserError(f"{error}; {advice}") from error
  return SavedModel(
    model=merge(structure, params),
    config=metadata["model"],
    class_names=metadata["class_names"],
    step=step,
    run_config=metadata.get("config"),
    precision=precision,
  )


def model_metadata(config: Mapping[str, Any], class_names: list[str] | None) -> dict:
  """What a checkpoint must say about its model for `load_model`."""
  return {"format": 1, "model": dict(config), "class_names": class_names}


def on_one_device(shapes: PyTree) -> PyTree:
  """The same jax.ShapeDtypeStructs, placed on the first local device."""
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def _make_writer(timeout: float = WRITE_TIMEOUT) -> ocp.AsyncCheckpointer:
  return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), timeout_secs=math.ceil(timeout))


def _save_args(trees: Mapping[str, PyTree]) -> ocp.args.Composite:
  return ocp.args.Composite(**{name: ocp.args.StandardSave(tree) for name, tree in trees.items()})


def _path(directory: Path, step: int) -> Path:
  return directory / f"{step:08d}"


def _commit(pending: Path, final: Path, metadata: dict) -> None:
  (pending / METADATA).write_text(json.dumps(metadata, indent=2) + "\n")
  write_checksums(pending)
  old = final.with_name(f".replaced-{final.name}")  # found by the next run after a kill
  if final.exists():  # saved at a preemption, and now again with its evaluation
    final.rename(old)
  pending.rename(final)
  flush_to_disk(final.parent)  # before others are removed
  shutil.rmtree(old, ignore_errors=True)
