"""What is minimised: the loss of a batch after erasing and mixing, and its gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from gfnet_jax.data.on_device.erasing import erase
from gfnet_jax.data.on_device.mixing import Mixing
from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.errors import UserError
from gfnet_jax.losses import KINDS, cross_entropy, distillation_loss
from gfnet_jax.models.functional import Params, merge
from gfnet_jax.models.precision import parameter_dtype
from gfnet_jax.sharding import Batch

Result = tuple[jax.Array, Params, jax.Array]
Objective = Callable[[Params, Params, Batch, jax.Array], Result]
Preparation = Callable[[Batch, jax.Array], tuple[jax.Array, jax.Array]]


def make_objective(
  structure: nnx.GraphDef, config: ml_collections.ConfigDict, teacher: nnx.GraphDef | None = None
) -> Objective:
  """Builds objective(params, teacher_params, batch, key) -> (loss, gradients, logits).

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
  prepare = make_preparation(config)
  distillation, parts = config.distillation, config.optimizer.accumulate_steps
  if distillation.kind not in KINDS:
    raise UserError(f"distillation.kind is {distillation.kind!r}, expected {' or '.join(KINDS)}")

  def mean_loss(trained, params, teacher_params, images, targets, key):
    logits = merge(structure, params | trained)(images, key=key)
    loss = cross_entropy(logits, targets)
    if teacher is not None:
      teacher_logits = merge(teacher, teacher_params)(images).astype(logits.dtype)
      distilled = distillation_loss(
        logits, teacher_logits, kind=distillation.kind, temperature=distillation.temperature
      )
      loss = (1 - distillation.alpha) * loss + distillation.alpha * distilled
    return loss.mean(), logits

  compute = jax.value_and_grad(mean_loss, has_aux=True)

  def objective(params: Params, teacher_params: Params, batch: Batch, key: jax.Array) -> Result:
    data_key, model_key = jax.random.split(key)
    images, targets = prepare(batch, data_key)
    trained = trained_params(params, config)
    if parts == 1:
      (loss, logits), gradients = compute(
        trained, params, teacher_params, images, targets, model_key
      )
      return loss, gradients, logits

    def add_part(sums, part):
      (loss, logits), gradients = compute(trained, params, teacher_params, *part)
      return jax.tree.map(jnp.add, sums, (loss, gradients)), logits

    taken_apart = (*_take_apart((images, targets), parts), jax.random.split(model_key, parts))
    zeros = (jnp.zeros((), images.dtype), jax.tree.map(jnp.zeros_like, trained))
    sums, logits = jax.lax.scan(add_part, zeros, taken_apart)
    loss, gradients = jax.tree.map(lambda x: x / parts, sums)
    return loss, gradients, logits.swapaxes(0, 1).reshape(-1, logits.shape[-1])

  return objective


def trained_params(params: Params, config: ml_collections.ConfigDict) -> Params:
  """The parameters that are trained: all, or those of the head on a frozen trunk."""
  if not config.get("freeze_trunk"):
    return params
  return {name: value for name, value in params.items() if name.startswith("head.")}


def make_preparation(config: ml_collections.ConfigDict) -> Preparation:
  """Builds prepare(batch, key) -> (images, targets): normalised, erased, mixed.

  Args:
    config: of the run; uses model.num_classes, precision, mixing, erasing.

  Raises:
    UserError: for an unknown mixing mode or group size.
  """
  dtype = parameter_dtype(config.precision)
  mixing = Mixing(num_classes=config.model.num_classes, **config.mixing)

  def prepare(batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    erase_key, mix_key = jax.random.split(key)
    images = normalize(batch["image"], dtype)
    if "erase" in batch:
      images = erase(images, batch["erase"], erase_key, mode=config.erasing.mode)
    return mixing(images, batch["label"], mix_key)

  return prepare


def _take_apart(arrays: tuple[jax.Array, ...], parts: int) -> tuple[jax.Array, ...]:
  """Adds a leading axis of parts, each with rows from every device so that none moves."""
  return tuple(x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for x in arrays)
