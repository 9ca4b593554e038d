"""Continuing a run from the newest checkpoint of its directory that is whole."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections

from gfnet_jax.errors import UserError
from gfnet_jax.training.checkpoint import (
  Checkpoints,
  list_steps,
  read_metadata,
  set_aside,
  verify,
)
from gfnet_jax.training.checksums import DamagedError
from gfnet_jax.training.distributed import agree, barrier
from gfnet_jax.training.step import TrainState

# Fields that may differ between a run and its continuation: they change no result.
OPERATIONAL = {
  "data.data_dir",
  "data.eval_batch_size",
  "data.max_bad_fraction",
  "data.verify_crc",
  "init_checkpoint",
  "model.remat",
  "on_nonfinite",
  "sharding",
  "stall_timeout",
}
OPERATIONAL_SECTIONS = ("data.reading.", "checkpoints.", "profile.")


def restore_run(
  checkpoints: Checkpoints,
  config: ml_collections.ConfigDict,
  shapes: TrainState,
  shardings: TrainState,
) -> tuple[TrainState, dict] | None:
  """The state to go on from and its metadata; None if there is nothing to restore.

  Damaged checkpoints are named, set aside, and passed over for the ones before.

  Args:
    checkpoints: of the run.
    config: of the run, which must be the one that it began with.
    shapes: of the state, jax.ShapeDtypeStruct.
    shardings: of the state.

  Raises:
    UserError: if the checkpoints were made with another config.
  """
  step = agree(newest_whole(checkpoints.directory) if jax.process_index() == 0 else -1)
  if step < 0:
    return None
  metadata = read_metadata(checkpoints.directory, step)
  if "config" not in metadata:
    workdir = checkpoints.directory.parent
    raise UserError(
      f"{workdir} holds converted weights, not a run; start from them in another work directory "
      f"with --config.init_checkpoint={workdir}"
    )
  _check_same_run(metadata["config"], config, checkpoints)
  target = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    shapes,
    shardings,
  )
  trees = checkpoints.restore(step, state_to_trees(target))
  barrier("restored")
  return trees_to_state(trees), metadata


def state_to_trees(state: TrainState) -> dict[str, Any]:
  """A state as the trees of a checkpoint: models are read without the rest."""
  fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
  params, ema = fields.pop("params"), fields.pop("ema")
  return {"params": params, **({"ema": ema} if ema else {}), "training": fields}


def trees_to_state(trees: dict[str, Any]) -> TrainState:
  """The inverse of `state_to_trees`."""
  return TrainState(params=trees["params"], ema=trees.get("ema", {}), **trees["training"])


def newest_whole(directory: Path) -> int:
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


def _check_same_run(
  saved: dict, config: ml_collections.ConfigDict, checkpoints: Checkpoints
) -> None:
  """Raises UserError naming the first field in which two configs differ."""
  before, now = _flatten(saved), _flatten(json.loads(config.to_json()))
  for field in sorted(before.keys() | now.keys()):
    if field in OPERATIONAL or field.startswith(OPERATIONAL_SECTIONS):
      continue
    if before.get(field) != now.get(field):
      raise UserError(
        f"{checkpoints.directory.parent} holds a run with {field}={before.get(field)}, this one "
        f"has {now.get(field)}; set another --workdir, or the field back to continue"
      )


def _flatten(config: dict, prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in config.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat
