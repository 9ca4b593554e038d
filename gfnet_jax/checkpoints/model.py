"""A model in a checkpoint: its parameters, and what is needed to build it again."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from gfnet_jax.checkpoints.checksums import DamagedError
from gfnet_jax.checkpoints.store import (
  Checkpoints,
  checkpoint_path,
  find_checkpoint,
  list_steps,
  on_one_device,
  read_metadata,
  restore,
  saved_shapes,
  verify,
)
from gfnet_jax.errors import UserError
from gfnet_jax.models.fit import describe_misfits
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.precision import compute_dtype
from gfnet_jax.models.variants import create_model


def save_model(
  directory: Path | str,
  model: nnx.Module,
  config: Mapping[str, Any],
  class_names: list[str] | None = None,
) -> None:
  """Writes the parameters of a model as a checkpoint that all scripts take.

  Args:
    directory: where; created if missing, and must hold no checkpoint.
    model: whose parameters are saved.
    config: the arguments of `create_model` that describe it.
    class_names: of the classes in order of their index.

  Raises:
    UserError: if the config describes another model, or the directory cannot be written
      or holds a checkpoint.
  """
  directory = Path(directory)
  _, expected = split(nnx.eval_shape(lambda: create_model(**config)))
  _, params = split(model)
  if misfits := describe_misfits(params, {name: x.shape for name, x in expected.items()}):
    raise UserError(f"the config describes another model than the one to save: {misfits}")
  if list_steps(directory / "checkpoints") or list_steps(directory):
    raise UserError(f"{directory} holds checkpoints already; choose another directory")
  new = not directory.exists()
  checkpoints = Checkpoints(directory / "checkpoints")
  checkpoints.save(0, {"params": params}, model_metadata(config, class_names))
  try:
    checkpoints.close()
  except UserError:
    shutil.rmtree(directory if new else checkpoints.directory, ignore_errors=True)
    raise


def read_model(
  directory: Path | str, which: str = "last", *, precision: str | None = None, ema: bool = False
) -> tuple[nnx.Module, dict]:
  """Reads a model from a checkpoint, with verification.

  Args:
    directory: a work directory, a directory of checkpoints, or one checkpoint.
    which: "last", "best" or a step; the best by the top-1 accuracy of what is read.
    precision: see `compute_dtype`; None for that of the training run, or "default".
    ema: take the moving averages of the parameters.

  Returns:
    The model, and the metadata of the checkpoint: `model_metadata`, "step" and, from a
    training run, "config"; "precision" is that of the model's dtype.

  Raises:
    UserError: if there is no checkpoint, it is damaged or of another version of its
      network, or the precision is unknown.
  """
  best_metric = "ema_top1" if ema else "top1"
  directory, step = find_checkpoint(Path(directory), which, best_metric=best_metric)
  try:
    verify(directory, step)
    metadata = read_metadata(directory, step)
    precision = precision or metadata.get("config", {}).get("precision", "default")
    dtype = compute_dtype(precision)
    structure, shapes = split(
      nnx.eval_shape(lambda: create_model(**metadata["model"], dtype=dtype))
    )
    tree = "ema" if ema else "params"
    if not (checkpoint_path(directory, step) / tree).is_dir():
      raise UserError(f"{directory} holds no averaged weights; train with ema_decay, or omit --ema")
    expected = {name: x.shape for name, x in shapes.items()}
    if misfits := describe_misfits(saved_shapes(directory, step, tree), expected):
      raise UserError(
        f"{checkpoint_path(directory, step)} was saved by another version of its network: "
        f"{misfits}; read it with the code that saved it"
      )
    params = restore(directory, step, {tree: on_one_device(shapes)})[tree]
  except DamagedError as error:
    others = [other for other in list_steps(directory) if other != step]
    advice = f"take {checkpoint_path(directory, others[-1])}" if others else "there is no other"
    raise UserError(f"{error}; {advice}") from error
  return merge(structure, params), metadata | {"precision": precision}


def model_metadata(config: Mapping[str, Any], class_names: list[str] | None) -> dict:
  """What a checkpoint must say about its model for `read_model`."""
  return {"format": 1, "model": dict(config), "class_names": class_names}
