"""What is minimised: the loss of a batch after erasing and mixing, and its gradients."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from gfnet_jax.errors import UserError
from gfnet_jax.losses import KINDS, distillation_loss
from gfnet_jax.models.batch_norm import is_statistic, running_statistics
from gfnet_jax.models.functional import Params, merge
from gfnet_jax.sharding import Batch
from gfnet_jax.training.tasks import learning_of

HEADS = ("head.", "pyramid.", "decoder.")  # of the names of what is not the trunk


class Result(NamedTuple):
  """What an objective returns.

  Attributes:
    loss: of the batch, a scalar.
    gradients: of the `trained_params`.
    logits: (batch, ..., num_classes).
    labels: (batch, ...), int32; of the images before mixing, negative for pixels of no class.
    statistics: the running statistics of batch norms after the batch, by name; {} without any.
  """

  loss: jax.Array
  gradients: Params
  logits: jax.Array
  labels: jax.Array
  statistics: Params


Objective = Callable[[Params, Params, Batch, jax.Array], Result]


def make_objective(
  structure: nnx.GraphDef, config: ml_collections.ConfigDict, teacher: nnx.GraphDef | None = None
) -> Objective:
  """Builds objective(params, teacher_params, batch, key) -> `Result`.

  The gradients are of the `trained_params` alone: none is computed for a frozen trunk.

  Args:
    structure: of the model.
    config: of the run; uses precision, freeze_trunk, mixing, erasing, distillation,
      optimizer.accumulate_steps.
    teacher: structure of the model to distil from; None for none, then
      teacher_params are {}.

  Raises:
    UserError: for an unknown mixing mode, distillation kind or group size.
  """
  learning = learning_of(config.model)
  prepare = learning.make_preparation(config)
  distillation, parts = config.distillation, config.optimizer.accumulate_steps
  if distillation.kind not in KINDS:
    raise UserError(f"distillation.kind is {distillation.kind!r}, expected {' or '.join(KINDS)}")

  def mean_loss(trained, params, teacher_params, images, targets, key):
    model = merge(structure, params | trained)
    logits = model(images, key=key)
    loss = learning.loss(logits, targets)
    if teacher is not None:
      teacher_logits = merge(teacher, teacher_params)(images).astype(logits.dtype)
      distilled = distillation_loss(
        logits, teacher_logits, kind=distillation.kind, temperature=distillation.temperature
      )
      loss = (1 - distillation.alpha) * loss + distillation.alpha * distilled
    return loss.mean(), (logits, running_statistics(model))

  compute = jax.value_and_grad(mean_loss, has_aux=True)

  def objective(params: Params, teacher_params: Params, batch: Batch, key: jax.Array) -> Result:
    data_key, model_key = jax.random.split(key)
    images, targets, labels = prepare(batch, data_key)
    trained = trained_params(params, config)
    if parts == 1:
      (loss, (logits, statistics)), gradients = compute(
        trained, params, teacher_params, images, targets, model_key
      )
      return Result(loss, gradients, logits, labels, statistics)

    def add_part(sums, part):
      (loss, others), gradients = compute(trained, params, teacher_params, *part)
      return jax.tree.map(jnp.add, sums, (loss, gradients)), others

    taken_apart = (*_take_apart((images, targets), parts), jax.random.split(model_key, parts))
    zeros = (jnp.zeros((), images.dtype), jax.tree.map(jnp.zeros_like, trained))
    sums, (logits, statistics) = jax.lax.scan(add_part, zeros, taken_apart)
    loss, gradients = jax.tree.map(lambda x: x / parts, sums)
    logits = logits.swapaxes(0, 1).reshape(-1, *logits.shape[2:])
    statistics = jax.tree.map(lambda x: x.mean(0), statistics)  # each part moved them once
    return Result(loss, gradients, logits, labels, statistics)

  return objective


def trained_params(params: Params, config: ml_collections.ConfigDict) -> Params:
  """The parameters that are trained: all, or those of the head or decoder on a frozen trunk.

  The running statistics of batch norms are no part of them.
  """
  frozen = config.get("freeze_trunk")
  return {
    name: value
    for name, value in params.items()
    if not is_statistic(name) and (not frozen or name.startswith(HEADS))
  }


def _take_apart(arrays: tuple[jax.Array, ...], parts: int) -> tuple[jax.Array, ...]:
  """Adds a leading axis of parts, each with rows from every device so that none moves."""
  return tuple(x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for x in arrays)
