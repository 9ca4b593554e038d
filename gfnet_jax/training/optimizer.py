"""AdamW as in the official recipe, and learning rates as plain functions of the step."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax

from gfnet_jax.console import say
from gfnet_jax.errors import UserError
from gfnet_jax.models.functional import Params

Schedule = Callable[[int], float]
POWER = 0.9  # of the schedule "poly"


def cosine_schedule(
  *, peak: float, warmup_steps: int, num_steps: int, initial: float, final: float
) -> Schedule:
  """Linear warm-up from `initial` to `peak`, then half a cosine down to `final`.

  Returns:
    A function of the step (0, ..., num_steps - 1) to its learning rate, in float64.
  """

  def learning_rate(step: int) -> float:
    if step < warmup_steps:
      return initial + (peak - initial) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))

  return learning_rate


def official_schedule(
  *, peak: float, warmup_epochs: int, num_epochs: int, initial: float, final: float
) -> Schedule:
  """The published runs' learning rate: constant within an epoch, and one epoch late.

  Epochs 0 and 1 both run at `initial`, because the official loop sets the rate of an
  epoch after it; the cosine is not shifted by the warm-up (timm 0.4.12, cosine_lr.py).

  Returns:
    A function of the epoch (0, ..., num_epochs - 1) to its learning rate, in float64.
  """

  def at(t: int) -> float:
    if t < warmup_epochs:
      return initial + t * ((peak - initial) / warmup_epochs)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * t / num_epochs))

  first = initial if warmup_epochs else peak
  return lambda epoch: at(epoch - 1) if epoch else first


def poly_schedule(
  *, peak: float, warmup_steps: int, num_steps: int, initial: float, final: float
) -> Schedule:
  """Linear warm-up from `initial` to `peak`, then down to `final` by a power of what is left.

  That is (1 - progress) ** POWER, as mmsegmentation's "poly" policy.

  Returns:
    A function of the step (0, ..., num_steps - 1) to its learning rate, in float64.
  """

  def learning_rate(step: int) -> float:
    if step < warmup_steps:
      return initial + (peak - initial) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return final + (peak - final) * (1 - progress) ** POWER

  return learning_rate


def decays(name: str) -> bool:
  """Whether weight decay applies: to kernels and filters only (official: timm's groups).

  Biases, norms, layer scales and the position embedding are exempt.
  """
  return name.rpartition(".")[2] in ("kernel", "complex_weight")


def make_optimizer(optimizer: ml_collections.ConfigDict) -> optax.GradientTransformation:
  """AdamW with decoupled decay behind clipping by the global norm.

  Its updates are to be multiplied by minus the learning rate, which is an argument of
  the training step and not part of the state.

  Args:
    optimizer: beta1, beta2, eps, weight_decay and clip_norm (0 does not clip).
  """
  return optax.chain(
    clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity(),
    optax.scale_by_adam(optimizer.beta1, optimizer.beta2, optimizer.eps),
    optax.add_decayed_weights(
      optimizer.weight_decay, mask=lambda params: {name: decays(name) for name in params}
    ),
  )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """Multiplies by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_.

  optax.clip_by_global_norm lacks the 1e-6.
  """

  def update(gradients: Params, state, params=None):
    del params
    factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(gradients) + 1e-6))
    return jax.tree.map(lambda gradient: gradient * factor, gradients), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_schedule(config: ml_collections.ConfigDict, steps_per_epoch: float) -> Schedule:
  """The learning rate of every step of a run, from its `optimizer` section.

  Warns if its first or its last rate is above its peak, which is scaled to the batch.

  Raises:
    UserError: for an unknown schedule or a warm-up longer than the run.
  """
  optimizer, num_epochs = config.optimizer, config.num_epochs
  if not 0 <= optimizer.warmup_epochs <= num_epochs:
    raise UserError(
      f"optimizer.warmup_epochs is {optimizer.warmup_epochs}, "
      f"expected 0 to num_epochs = {num_epochs}"
    )
  rates = dict(
    peak=optimizer.learning_rate,
    initial=optimizer.warmup_learning_rate,
    final=optimizer.final_learning_rate,
  )
  if optimizer.reference_batch_size:
    scaled = rates if optimizer.get("scale_all_rates") else ("peak",)
    batch_size, reference = config.data.batch_size, optimizer.reference_batch_size
    rates |= {name: rates[name] * batch_size / reference for name in scaled}
  _warn_of_rising(config, rates)
  if optimizer.schedule in PER_STEP:
    return PER_STEP[optimizer.schedule](
      warmup_steps=round(optimizer.warmup_epochs * steps_per_epoch),
      num_steps=round(num_epochs * steps_per_epoch),
      **rates,
    )
  if optimizer.schedule == "official":
    per_epoch = official_schedule(
      warmup_epochs=optimizer.warmup_epochs, num_epochs=num_epochs, **rates
    )
    return lambda step: per_epoch(int(step / steps_per_epoch + 1e-9))  # up to rounding
  raise UserError(
    f"optimizer.schedule is {optimizer.schedule!r}, expected one of official, {', '.join(PER_STEP)}"
  )


PER_STEP = {"cosine": cosine_schedule, "poly": poly_schedule}


def _warn_of_rising(config: ml_collections.ConfigDict, rates: dict[str, float]) -> None:
  """Says once which rates are above the peak; a warm-up of no epochs has no first one."""
  names = ["initial"] * (config.optimizer.warmup_epochs > 0) + ["final"]
  above = [name for name in names if rates[name] > rates["peak"]]
  if not above:
    return
  does = {"initial": "begins the warm-up at {:.3g}", "final": "ends at {:.3g}"}
  fields = {"initial": "warmup_learning_rate", "final": "final_learning_rate"}
  said = " and ".join(does[name].format(rates[name]) for name in above)
  advice = " and ".join(f"optimizer.{fields[name]}" for name in above)
  if config.optimizer.reference_batch_size:
    advice += ", or set optimizer.scale_all_rates=True"
  say(f"warning: the learning rate {said}, above its peak of {rates['peak']:.3g}; lower {advice}")
