"""Continuing a run from the newest checkpoint of its directory that is whole."""

import json
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from gfnet_jax.errors import UserError
from gfnet_jax.training.checkpoint import Checkpoints, list_steps, read_metadata
from gfnet_jax.training.checksums import DamagedError
from gfnet_jax.training.step import TrainState

# Fields that may differ between a run and its continuation: they change no result.
OPERATIONAL = {"keep_checkpoints", "data.data_dir"}
OPERATIONAL_SECTIONS = ("data.reading.",)


def restore_run(
  checkpoints: Checkpoints, config: ml_collections.ConfigDict, init: Callable[[], TrainState]
) -> tuple[TrainState, dict]:
  """The state to go on from, and the results of the last evaluation.

  Damaged checkpoints are named and passed over for the ones before.

  Args:
    checkpoints: of the run.
    config: of the run, which must be the one that it began with.
    init: makes a fresh state; used as it is if there is no checkpoint.

  Raises:
    UserError: if the checkpoints were made with another config.
  """
  for step in reversed(list_steps(checkpoints.directory)):
    metadata = read_metadata(checkpoints.directory, step)
    try:
      if metadata:
        _check_same_run(metadata["config"], config, checkpoints)
      trees = checkpoints.restore(step, state_to_trees(_abstract(init)))
    except DamagedError as error:
      print(f"{error}; trying the one before", flush=True)
      continue
    return trees_to_state(trees), metadata["metrics"]
  return init(), {}


def state_to_trees(state: TrainState) -> dict[str, Any]:
  """A state as the trees of a checkpoint, parameters apart: models are read without the rest."""
  rest = {"step": state.step, "optimizer": state.optimizer, "metrics": state.metrics}
  return {"params": state.params, "training": rest}


def trees_to_state(trees: dict[str, Any]) -> TrainState:
  """The inverse of `state_to_trees`."""
  return TrainState(params=trees["params"], **trees["training"])


def _abstract(init: Callable[[], TrainState]) -> TrainState:
  """Shapes, types and shardings of a state, without making one."""
  state = jax.eval_shape(init)
  mesh = jax.sharding.get_mesh()
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


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
