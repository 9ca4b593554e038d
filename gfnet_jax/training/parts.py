"""What a run is made of before its first step: its data, its model, its compiled steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh

from gfnet_jax.data.pipeline import check_fills_a_batch
from gfnet_jax.data.records import Source
from gfnet_jax.data.sources import check_classes, check_same_classes, open_source
from gfnet_jax.data.transforms import EvalTransform, TrainTransform
from gfnet_jax.models.functional import Params, split
from gfnet_jax.models.gfnet import as_height_width
from gfnet_jax.models.variants import create_model
from gfnet_jax.training.initial import load_teacher
from gfnet_jax.training.metrics import EvalMetrics
from gfnet_jax.training.objective import Batch, make_objective
from gfnet_jax.training.optimizer import Schedule, make_optimizer, make_schedule
from gfnet_jax.training.precision import compute_dtype
from gfnet_jax.training.sharding import replicated, shard_state
from gfnet_jax.training.step import TrainState, init_state, make_eval_step, make_train_step


class RunData(NamedTuple):
  """Where the images come from, and how many steps they make.

  Attributes:
    train_source: of the training images.
    eval_source: of the evaluation's.
    train_transform: augments a training image.
    eval_transform: crops an image of the evaluation.
    steps_per_epoch: global batches in the training images, with a fraction.
    num_steps: of the whole run.
    schedule: the learning rate of every step.
  """

  train_source: Source
  eval_source: Source
  train_transform: TrainTransform
  eval_transform: EvalTransform
  steps_per_epoch: float
  num_steps: int
  schedule: Schedule


class RunSteps(NamedTuple):
  """What is computed on the devices.

  Attributes:
    make_model: creates the model with fresh parameters.
    init: parameters to the state before the first step, sharded.
    shapes: of that state.
    shardings: of that state.
    teacher_params: of the model to distil from; {} for none.
    train: one training step.
    evaluate: the metrics of a batch.
    parameter_norm: the norm of all parameters.
    gather: parameters to the same, whole on every device.
  """

  make_model: Callable[[], nnx.Module]
  init: Callable[[Params], TrainState]
  shapes: TrainState
  shardings: TrainState
  teacher_params: Params
  train: Callable[[TrainState, Params, Batch, float], TrainState]
  evaluate: Callable[[Params, Batch], EvalMetrics]
  parameter_norm: Callable[[Params], jax.Array]
  gather: Callable[[Params], Params]


def open_data(config: ml_collections.ConfigDict) -> RunData:
  """Opens the data; counts the classes for `model.num_classes` if that is 0.

  Raises:
    UserError: if the data cannot be read, or is not for this model and batch size.
  """
  data, model = config.data, config.model
  train_source = open_source(data, data.train_split)
  eval_source = open_source(data, data.eval_split)
  if model.num_classes == 0:
    model.num_classes = len(train_source.class_names)
  for source in (train_source, eval_source):
    check_classes(source, model.num_classes)
  check_same_classes(eval_source.class_names, train_source.class_names, data.eval_split)
  check_fills_a_batch(train_source, data.batch_size)
  steps_per_epoch = len(train_source) / data.batch_size
  return RunData(
    train_source,
    eval_source,
    TrainTransform(image_size=model.image_size, fast_decode=data.fast_decode, **config.augment),
    EvalTransform(model.image_size),
    steps_per_epoch,
    num_steps=max(1, round(config.num_epochs * steps_per_epoch)),
    schedule=make_schedule(config, steps_per_epoch),
  )


def build_steps(config: ml_collections.ConfigDict, mesh: Mesh) -> RunSteps:
  """Builds the model and everything around it; nothing is compiled yet.

  Raises:
    UserError: for a model, teacher, objective or sharding that cannot be.
  """
  dtype, whole = compute_dtype(config.precision), replicated(mesh)

  def make_model() -> nnx.Module:
    return create_model(**model_config(config), dtype=dtype, rngs=nnx.Rngs(config.seed))

  structure, params = split(nnx.eval_shape(make_model))
  image_size = as_height_width(config.model.image_size)
  teacher, teacher_params = load_teacher(
    config.distillation.teacher, config.model.num_classes, image_size, mesh
  )
  optimizer = make_optimizer(config.optimizer)

  def init(params: Params) -> TrainState:
    return init_state(params, optimizer, config)

  shapes = jax.eval_shape(init, params)
  shardings = shard_state(shapes, mesh, config.sharding)
  objective = make_objective(structure, config, teacher)
  return RunSteps(
    make_model,
    jax.jit(init, out_shardings=shardings),
    shapes,
    shardings,
    teacher_params,
    train=make_train_step(objective, optimizer, config, mesh, shardings),
    evaluate=make_eval_step(structure, mesh),
    parameter_norm=jax.jit(optax.tree.norm, out_shardings=whole),
    gather=jax.jit(lambda params: params, out_shardings=whole),
  )


def model_config(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The arguments of `create_model`, without those left to the variant."""
  return {name: value for name, value in config.model.items() if value is not None}
