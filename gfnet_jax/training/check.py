"""Configs that cannot work are refused before anything is started."""

import math

import ml_collections
from jax.sharding import Mesh

from gfnet_jax.data.erasing import MODES
from gfnet_jax.errors import UserError
from gfnet_jax.training.console import say

NONFINITE = ("stop", "skip", "rollback")
AT_LEAST_ONE = (
  "log_every_steps",
  "optimizer.accumulate_steps",
  "data.batch_size",
  "data.eval_batch_size",
  "checkpoints.keep_last",
  "erasing.max_count",
)
AT_LEAST_ZERO = (
  "seed",
  "optimizer.learning_rate",
  "optimizer.warmup_learning_rate",
  "optimizer.final_learning_rate",
  "data.reading.threads",
  "data.reading.prefetch",
  "data.reading.workers",
  "optimizer.clip_norm",
  "optimizer.weight_decay",
  "optimizer.reference_batch_size",
  "profile.first_step",
)
POSITIVE = ("num_epochs", "eval_every_epochs", "optimizer.eps", "distillation.temperature")
BELOW_ONE = ("ema_decay", "optimizer.beta1", "optimizer.beta2")
SHARES = ("erasing.probability", "distillation.alpha", "data.max_bad_fraction")
SHORTEST_TIMEOUT = 5.0  # seconds, of several beats


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises UserError for a number out of range or an unknown policy."""
  for field in AT_LEAST_ONE:
    _require(config, field, lambda value: value >= 1, "at least 1")
  for field in AT_LEAST_ZERO:
    _require(config, field, lambda value: 0 <= value < math.inf, "at least 0, and finite")
  for field in POSITIVE:
    _require(config, field, lambda value: 0 < value < math.inf, "more than 0, and finite")
  for field in SHARES:
    _require(config, field, lambda value: 0 <= value <= 1, "0 to 1")
  timeout = f"0 (never) or at least {SHORTEST_TIMEOUT:.0f}"
  _require(config, "stall_timeout", lambda value: value == 0 or value >= SHORTEST_TIMEOUT, timeout)
  first = config.profile.first_step
  _require(
    config, "profile.last_step", lambda last: not first or last >= first, f"at least {first}"
  )
  for field in BELOW_ONE:
    _require(config, field, lambda value: 0 <= value < 1, "0 up to, but not, 1")
  _require(config, "erasing.mode", MODES.__contains__, f"one of {', '.join(MODES)}")
  _require(config, "on_nonfinite", NONFINITE.__contains__, f"one of {', '.join(NONFINITE)}")


def _require(config: ml_collections.ConfigDict, field: str, holds, expected: str) -> None:
  value = config
  for name in field.split("."):
    value = value[name]
  if not holds(value):
    raise UserError(f"{field} is {value!r}, expected {expected}")


def check_profile(config: ml_collections.ConfigDict, num_steps: int) -> None:
  """Raises UserError if the run has no step that is to be recorded."""
  if config.profile.first_step > num_steps:
    raise UserError(
      f"profile.first_step is {config.profile.first_step}, expected at most the run's {num_steps}"
    )


def check_groups(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
  """Says so if mixup has to move images between devices in every step.

  Raises:
    UserError: if its groups do not divide the batch.
  """
  mixing = config.mixing
  if not (mixing.mixup_alpha or mixing.cutmix_alpha or mixing.cutmix_minmax):
    return
  if mixing.group_size < 1 or config.data.batch_size % mixing.group_size:
    raise UserError(
      f"mixing.group_size is {mixing.group_size}, expected a divisor of "
      f"data.batch_size={config.data.batch_size}, such as {config.data.batch_size} itself"
    )
  rows = config.data.batch_size // mesh.size
  if rows % mixing.group_size:
    say(
      f"warning: mixing.group_size={mixing.group_size} spans devices of {rows} images each, which "
      f"moves images between them in every step; a divisor of {rows} would not"
    )
