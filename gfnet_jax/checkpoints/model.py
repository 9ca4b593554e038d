"""A model in a checkpoint: its parameters, and what is needed to build it again."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from gfnet_jax.buckets import BucketPath, as_directory
from gfnet_jax.checkpoints.checksums import DamagedError
from gfnet_jax.checkpoints.finding import find_checkpoint, list_steps
from gfnet_jax.checkpoints.metadata import FORMAT
from gfnet_jax.checkpoints.reading import (
  checkpoint_path,
  on_one_device,
  read_metadata,
  restore,
  saved_shapes,
  verify,
)
from gfnet_jax.checkpoints.remote import on_disk
from gfnet_jax.checkpoints.store import Checkpoints
from gfnet_jax.errors import UserError
from gfnet_jax.models.fit import describe_misfits
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.precision import compute_dtype
from gfnet_jax.models.ranges import check_arguments
from gfnet_jax.models.variants import create_model


def save_model(
  directory: Path | BucketPath | str,
  model: nnx.Module,
  config: Mapping[str, Any],
  class_names: list[str] | None = None,
) -> None:
  """Saves a model as a checkpoint, which `load_model`, training and all commands accept.

  Args:
    directory: where; created if missing, and must hold no checkpoint.
    model: whose parameters are saved.
    config: the arguments of `create_model` that describe it.
    class_names: of the classes in order of their index.

  Raises:
    UserError: if the config describes another model, there are more or fewer names than
      classes, or the directory cannot be written or holds a checkpoint.
  """
  directory = as_directory(directory)
  check_description(model, config, class_names)
  if list_steps(directory / "checkpoints") or list_steps(directory):
    raise UserError(f"{directory} holds checkpoints already; choose another directory")
  new = not directory.exists()
  checkpoints = Checkpoints(directory / "checkpoints")
  checkpoints.save(0, {"params": split(model)[1]}, model_metadata(config, class_names))
  try:
    checkpoints.close()
  except UserError:
    if isinstance(directory, Path):
      shutil.rmtree(directory if new else checkpoints.directory, ignore_errors=True)
    raise


def read_model(
  directory: Path | BucketPath | str,
  which: str = "last",
  *,
  precision: str | None = None,
  ema: bool = False,
) -> tuple[nnx.Module, dict]:
  """Reads a model from a checkpoint, with verification.

  Args:
    directory: a work directory, a directory of checkpoints, or one checkpoint; also in a
      store, such as gs://bucket/run.
    which: "last", "best" or a step; the best by the top-1 accuracy of what is read.
    precision: see `compute_dtype`; None for that of the training run, or "default".
    ema: take the moving averages of the parameters.

  Returns:
    The model, and the metadata of the checkpoint: `model_metadata`, "step" and, from a
    training run, "config"; "precision" is that of the model's dtype.

  Raises:
    UserError: if there is no checkpoint, it is damaged, does not describe its model or is
      of another version of its network, or the precision is unknown.
  """
  best_metric = "ema_top1" if ema else "top1"
  directory, step = find_checkpoint(directory, which, best_metric=best_metric)
  try:
    with on_disk(directory, step) as local:
      return _read(directory, local, step, precision, "ema" if ema else "params")
  except DamagedError as error:
    others = [other for other in list_steps(directory) if other != step]
    advice = f"take {checkpoint_path(directory, others[-1])}" if others else "there is no other"
    raise UserError(f"{error}; {advice}") from error


def _read(
  directory: Path | BucketPath, local: Path, step: int, precision: str | None, tree: str
) -> tuple[nnx.Module, dict]:
  """As `read_model`, of a checkpoint that is in a directory and, perhaps as a copy, on disk."""
  path = checkpoint_path(directory, step)
  verify(local, step)
  metadata = read_metadata(local, step)
  if "model" not in metadata:
    raise UserError(f"{path} holds no model; name a checkpoint of train.py or of save_model")
  if not (checkpoint_path(local, step) / tree).is_dir():
    raise UserError(f"{directory} holds no averaged weights; train with ema_decay, or omit --ema")
  precision = precision or metadata.get("config", {}).get("precision", "default")
  dtype = compute_dtype(precision)
  saved = saved_shapes(local, step, tree)
  if not all(isinstance(array, jax.ShapeDtypeStruct) for array in saved.values()):
    raise DamagedError(path, f"{tree} holds no arrays by name")
  try:
    model = build_model(metadata["model"], saved, dtype)
    check_class_names(metadata["class_names"], model)
  except UserError as error:
    raise UserError(f"{path} does not describe its model: {error}") from error
  structure, shapes = split(model)
  expected = {name: x.shape for name, x in shapes.items()}
  if misfits := describe_misfits(saved, expected):
    raise UserError(
      f"{path} was saved by another version of its network: {misfits}; read it with the code "
      "that saved it"
    )
  params = restore(local, step, {tree: on_one_device(shapes)})[tree]
  return merge(structure, params), metadata | {"precision": precision}


def saved_class_names(directory: Path) -> list[str] | None:
  """The names of the classes in the last checkpoint of a directory; None without any.

  Raises:
    UserError: if there is no checkpoint, or it is damaged.
  """
  return read_metadata(*find_checkpoint(directory, "last"))["class_names"]


def build_model(
  arguments: Mapping[str, Any],
  saved: Mapping[str, jax.ShapeDtypeStruct | np.ndarray],
  dtype: DTypeLike,
) -> nnx.Module:
  """A model as `create_model` makes it of untrusted arguments, without its arrays.

  Args:
    arguments: those of `create_model`.
    saved: the shapes of the arrays to fill it with, by name.
    dtype: of the model.

  Raises:
    UserError: if there is no such model, or it has more blocks than there are arrays for.
  """
  if "name" not in arguments or {"dtype", "rngs"} & arguments.keys():
    raise UserError(f"expected the arguments of create_model, found {', '.join(arguments)}")
  check_arguments(arguments)
  blocks = sum(arguments.get("depths") or [arguments.get("depth") or 0])
  # Each has an array of its own, or a place in a stack; to build them takes long.
  most = sum(max(x.shape[:1], default=1) if ".stacked." in name else 1 for name, x in saved.items())
  if blocks > most:
    raise UserError(f"{blocks} blocks are more than the {most} that its arrays are for")
  return nnx.eval_shape(lambda: create_model(**arguments, dtype=dtype))


def check_description(
  model: nnx.Module, config: Mapping[str, Any], class_names: list[str] | None
) -> None:
  """Raises UserError unless a config and names of classes are those of a model to be saved."""
  described = nnx.eval_shape(lambda: create_model(**config))
  check_class_names(class_names, described)
  (_, expected), (_, params) = split(described), split(model)
  if misfits := describe_misfits(params, {name: x.shape for name, x in expected.items()}):
    raise UserError(f"the config describes another model than the one to save: {misfits}")


def check_class_names(class_names: list[str] | None, model: nnx.Module) -> None:
  """Raises UserError unless there is a name for every class of a model, or none at all."""
  if class_names is not None and len(class_names) != model.num_classes:
    raise UserError(
      f"there are {len(class_names)} class names for a model of {model.num_classes} classes; "
      "expected one for each"
    )


def model_metadata(config: Mapping[str, Any], class_names: list[str] | None) -> dict:
  """What a checkpoint must say about its model for `read_model`."""
  return {"format": FORMAT, "model": dict(config), "class_names": class_names}
