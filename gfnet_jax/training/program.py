"""What a run computes on the devices: its model and its compiled functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh

from gfnet_jax.inference.evaluate import task_of
from gfnet_jax.models.functional import Params, split
from gfnet_jax.models.initializers import initial_rngs
from gfnet_jax.models.precision import compute_dtype
from gfnet_jax.models.variants import create_model
from gfnet_jax.sharding import Batch, replicated, shard_state
from gfnet_jax.training import metrics
from gfnet_jax.training.initialize import load_teacher
from gfnet_jax.training.objective import make_objective
from gfnet_jax.training.optimizer import make_optimizer
from gfnet_jax.training.step import TrainState, init_state, make_train_step


class Program(NamedTuple):
  """The functions of a run; nothing is compiled before its first call.

  Attributes:
    make_model: creates the model with fresh parameters.
    init: parameters to the state before the first step, sharded.
    shapes: of that state.
    shardings: of that state.
    teacher_params: of the model to distil from; {} for none.
    train: one training step, of `make_train_step`.
    evaluate: what an evaluation counts of a batch, of `Task.make_step`.
    parameter_norm: the norm of all parameters together.
    gather: parameters to the same, whole on every device.
    empty_metrics: sums and counts of nothing yet, for the state.
  """

  make_model: Callable[[], nnx.Module]
  init: Callable[[Params], TrainState]
  shapes: TrainState
  shardings: TrainState
  teacher_params: Params
  train: Callable[[TrainState, Params, Batch, float], TrainState]
  evaluate: Callable[[Params, Batch], Any]
  parameter_norm: Callable[[Params], jax.Array]
  gather: Callable[[Params], Params]
  empty_metrics: Callable[[], metrics.Metrics]


def build_program(config: ml_collections.ConfigDict, mesh: Mesh) -> Program:
  """Builds the model and everything around it.

  Raises:
    UserError: for a model, teacher, objective or sharding that cannot work.
  """
  dtype, whole = compute_dtype(config.precision), replicated(mesh)

  def make_model() -> nnx.Module:
    return create_model(**model_config(config), dtype=dtype, rngs=initial_rngs(config.seed))

  model = nnx.eval_shape(make_model)
  structure, params = split(model)
  teacher, teacher_params = load_teacher(
    config.distillation.teacher,
    config.model.num_classes,
    model.image_size,
    mesh,
    precision="float64" if config.precision == "float64" else None,  # else as it was trained
  )
  optimizer = make_optimizer(config.optimizer)

  def init(params: Params) -> TrainState:
    return init_state(params, optimizer, config)

  shapes = jax.eval_shape(init, params)
  shardings = shard_state(shapes, mesh, config.sharding)
  objective = make_objective(structure, config, teacher)
  return Program(
    make_model,
    jax.jit(init, out_shardings=shardings),
    shapes,
    shardings,
    teacher_params,
    train=make_train_step(objective, optimizer, config, mesh, shardings),
    evaluate=task_of(config.model).make_step(structure, mesh),
    parameter_norm=jax.jit(optax.tree.norm, out_shardings=whole),
    gather=jax.jit(lambda params: params, out_shardings=whole),
    empty_metrics=jax.jit(lambda: metrics.empty(params), out_shardings=whole),
  )


def model_config(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The arguments of `create_model`, without those left to the variant."""
  return {name: value for name, value in config.model.items() if value is not None}
