"""What is allowed in a config: a row per field, and the rules that involve several."""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from jax.sharding import Mesh

from gfnet_jax.console import say
from gfnet_jax.data.on_device.erasing import MODES
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

NONFINITE = ("stop", "skip", "rollback")
SHORTEST_TIMEOUT = 5.0  # seconds, of several heartbeats
MOST_EPOCHS = 1_000_000
LARGEST_INTEGER = 2**31 - 1  # steps and seeds are int32 on the devices
SMALLEST, LARGEST = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


class Range(NamedTuple):
  """Values that a field may have, and how an error describes them."""

  holds: Callable[[Any], bool]
  expected: str


class Rule(NamedTuple):
  """The rule of one field.

  Attributes:
    range: the values that it may have.
    may_change: whether a run may continue with another value: the field changes no result.
    may_be_open: whether it may be None in a config that is automatic; see `choices`.
  """

  range: Range
  may_change: bool = False
  may_be_open: bool = False


def _choice(*names: str) -> Range:
  return Range(
    lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}"
  )


def _number(holds: Callable[[float], bool], expected: str) -> Range:
  """Real numbers that are finite in float32, in which devices compute, and satisfy more."""

  def is_number(value: Any) -> bool:
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and abs(value) <= LARGEST and holds(value)

  return Range(is_number, expected)


def _integer(low: int, high: int = LARGEST_INTEGER) -> Range:
  def is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= value <= high

  return Range(is_integer, f"at least {low} and at most {high}, an integer")


def _pair_or_none(value: Any) -> bool:
  return value is None or (
    isinstance(value, tuple | list) and len(value) == 2 and all(map(SHARE.holds, value))
  )


def _or_none(one: Range) -> Range:
  return Range(lambda value: value is None or one.holds(value), f"{one.expected}, or None")


ANY = Range(lambda value: True, "anything")  # checked where it is used
TEXT = Range(lambda value: isinstance(value, str) and "\0" not in value, "text")
TEXT_OR_NONE = Range(lambda value: value is None or TEXT.holds(value), "text or None")
FLAG = Range(lambda value: isinstance(value, bool), "True or False")
FLAG_OR_NONE = Range(lambda value: value is None or FLAG.holds(value), "True, False or None")
AT_LEAST_ONE = _integer(1)
COUNT = _integer(0)
BATCH = _integer(1, 2**20)
AT_LEAST_ZERO = _number(lambda value: value >= 0, "at least 0, and finite")
POSITIVE = _number(lambda value: value >= SMALLEST, "more than 0, and finite")
EPOCHS = _number(lambda value: 0 < value <= MOST_EPOCHS, f"more than 0, at most {MOST_EPOCHS}")
BELOW_ONE = _number(lambda value: 0 <= value < 1, "0 up to, but not, 1")
SHARE = _number(lambda value: 0 <= value <= 1, "0 to 1")
PAIR_OF_SHARES = Range(_pair_or_none, "None or a pair of fractions of 1")
TIMEOUT = _number(
  lambda value: value == 0 or value >= SHORTEST_TIMEOUT,
  f"0 (never) or at least {SHORTEST_TIMEOUT:.0f}, and finite",
)

RULES = {
  "name": Rule(TEXT, may_change=True),
  "seed": Rule(_integer(0, 2**32 - 1)),
  "num_epochs": Rule(EPOCHS, may_be_open=True),
  "log_every_steps": Rule(AT_LEAST_ONE, may_change=True),
  "eval_every_epochs": Rule(POSITIVE, may_change=True, may_be_open=True),
  "precision": Rule(TEXT),
  "init_checkpoint": Rule(TEXT, may_change=True),
  "ema_decay": Rule(BELOW_ONE),
  "on_nonfinite": Rule(_choice(*NONFINITE), may_change=True),
  "freeze_trunk": Rule(FLAG_OR_NONE),
  "report": Rule(FLAG_OR_NONE, may_change=True),
  "sharding": Rule(TEXT, may_change=True),
  "filters_every_steps": Rule(COUNT, may_change=True),
  "trackers.wandb": Rule(FLAG, may_change=True),
  "trackers.mlflow": Rule(FLAG, may_change=True),
  "stall_timeout": Rule(TIMEOUT, may_change=True),
  "model.name": Rule(ANY),
  "model.image_size": Rule(ANY),
  "model.num_classes": Rule(ANY),
  "model.patch_size": Rule(ANY),
  "model.embed_dim": Rule(ANY),
  "model.depth": Rule(ANY),
  "model.embed_dims": Rule(ANY),
  "model.depths": Rule(ANY),
  "model.mixer": Rule(ANY),
  "model.decoder": Rule(ANY),
  "model.decoder_dims": Rule(ANY),
  "model.drop_path_rate": Rule(ANY),
  "model.backend": Rule(ANY),
  "model.filter_precision": Rule(ANY),
  "model.remat": Rule(FLAG, may_change=True),
  "model.scan": Rule(FLAG),
  "optimizer.learning_rate": Rule(AT_LEAST_ZERO, may_be_open=True),
  "optimizer.reference_batch_size": Rule(COUNT),
  "optimizer.scale_all_rates": Rule(FLAG_OR_NONE),
  "optimizer.schedule": Rule(TEXT),
  "optimizer.warmup_epochs": Rule(AT_LEAST_ZERO, may_be_open=True),
  "optimizer.warmup_learning_rate": Rule(AT_LEAST_ZERO),
  "optimizer.final_learning_rate": Rule(AT_LEAST_ZERO),
  "optimizer.beta1": Rule(BELOW_ONE),
  "optimizer.beta2": Rule(BELOW_ONE),
  "optimizer.eps": Rule(POSITIVE),
  "optimizer.weight_decay": Rule(AT_LEAST_ZERO),
  "optimizer.clip_norm": Rule(AT_LEAST_ZERO),
  "optimizer.accumulate_steps": Rule(AT_LEAST_ONE),
  "data.source": Rule(TEXT),
  "data.name": Rule(TEXT),
  "data.data_dir": Rule(TEXT, may_change=True),
  "data.train_split": Rule(TEXT),
  "data.eval_split": Rule(TEXT),
  "data.test_split": Rule(TEXT_OR_NONE, may_change=True),
  "data.held_out": Rule(TEXT_OR_NONE),
  "data.domains": Rule(ANY),
  "data.folders": Rule(ANY),
  "data.batch_size": Rule(BATCH, may_be_open=True),
  "data.eval_batch_size": Rule(BATCH, may_change=True, may_be_open=True),
  "data.repeats": Rule(AT_LEAST_ONE),
  "data.max_bad_fraction": Rule(SHARE, may_change=True),
  "data.fast_decode": Rule(FLAG),
  "data.verify_crc": Rule(FLAG, may_change=True),
  "data.reduce_zero_label": Rule(FLAG_OR_NONE),
  "data.reading.threads": Rule(_integer(0, 1024), may_change=True),
  "data.reading.prefetch": Rule(_integer(0, 1024), may_change=True),
  "data.reading.workers": Rule(_integer(0, 1024), may_change=True, may_be_open=True),
  "augment.crop": Rule(TEXT),
  "augment.padding": Rule(_integer(0, 65_536)),
  "augment.flip": Rule(SHARE),
  "augment.interpolation": Rule(TEXT),
  "augment.auto_augment": Rule(TEXT),
  "augment.color_jitter": Rule(_number(lambda value: 0 <= value <= 100, "0 to 100")),
  "segmentation.scale": Rule(ANY),
  "segmentation.max_class_share": Rule(_or_none(SHARE)),
  "segmentation.distortion": Rule(_or_none(SHARE)),
  "mixing.mixup_alpha": Rule(AT_LEAST_ZERO),
  "mixing.cutmix_alpha": Rule(AT_LEAST_ZERO),
  "mixing.cutmix_minmax": Rule(PAIR_OF_SHARES),
  "mixing.prob": Rule(SHARE),
  "mixing.switch_prob": Rule(SHARE),
  "mixing.mode": Rule(TEXT),
  "mixing.group_size": Rule(COUNT, may_be_open=True),
  "mixing.smoothing": Rule(BELOW_ONE),
  "mixing.new_box": Rule(FLAG),
  "distillation.teacher": Rule(TEXT),
  "distillation.kind": Rule(TEXT),
  "distillation.alpha": Rule(SHARE),
  "distillation.temperature": Rule(POSITIVE),
  "erasing.probability": Rule(SHARE),
  "erasing.max_count": Rule(_integer(1, 1000)),
  "erasing.mode": Rule(_choice(*MODES)),
  "checkpoints.keep_last": Rule(AT_LEAST_ONE, may_change=True),
  "checkpoints.keep_every_epochs": Rule(AT_LEAST_ZERO, may_change=True),
  "checkpoints.every_steps": Rule(COUNT, may_change=True),
  "profile.first_step": Rule(COUNT, may_change=True),
  "profile.last_step": Rule(COUNT, may_change=True),
}
NO_RULE = Rule(ANY)  # of fields that a config of one's own adds


def check_config(config: ml_collections.ConfigDict, *, may_be_open: bool = False) -> None:
  """Raises UserError for the first field that is missing, or whose value is out of its range.

  Args:
    config: of a run.
    may_be_open: whether fields of an automatic config may be None, to be chosen (`choices`).
  """
  may_be_open = may_be_open and config.get("automatic", False)
  fields = flatten(config.to_dict())
  for field in RULES:
    if field not in fields:
      raise UserError(f"the config has no field {field}; begin with configs/default.py")
  for field, value in fields.items():
    rule = RULES.get(field, NO_RULE)
    left_open = value is None and rule.may_be_open and may_be_open
    if not left_open and not rule.range.holds(value):
      raise UserError(f"{field} is {printable(repr(value))}, expected {rule.range.expected}")
  first, last = config.profile.first_step, config.profile.last_step
  if first and last < first:
    raise UserError(f"profile.last_step is {last}, expected at least {first}")
  if config.freeze_trunk and not config.init_checkpoint:
    raise UserError(
      "freeze_trunk is True, but nothing was trained before: expected weights in init_checkpoint, "
      "such as --config.init_checkpoint=gfnet-xs, or freeze_trunk=False"
    )


def check_steps(config: ml_collections.ConfigDict, num_steps: int) -> None:
  """Raises UserError if the run has too many steps to count, or none that is to be recorded."""
  if num_steps > LARGEST_INTEGER:
    raise UserError(
      f"the run has {num_steps} steps, expected at most {LARGEST_INTEGER}; lower num_epochs, or "
      "choose a larger data.batch_size"
    )
  if config.profile.first_step > num_steps:
    raise UserError(
      f"profile.first_step is {config.profile.first_step}, expected at most the run's {num_steps}"
    )


def check_groups(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
  """Warns if mixup has to move images between devices in every step, unless that was chosen.

  Raises:
    UserError: if the batch is odd, or its groups do not divide it.
  """
  mixing = config.mixing
  if not mixes(mixing):
    return
  if config.data.batch_size % 2:
    raise UserError(
      f"data.batch_size is {config.data.batch_size}, expected an even number, as images are "
      "mixed in pairs; choose one, or switch mixing off with --config.mixing.mixup_alpha=0 "
      "--config.mixing.cutmix_alpha=0"
    )
  if mixing.group_size < 1 or config.data.batch_size % mixing.group_size:
    raise UserError(
      f"mixing.group_size is {mixing.group_size}, expected a divisor of "
      f"data.batch_size={config.data.batch_size}, such as {config.data.batch_size} itself"
    )
  rows = config.data.batch_size // mesh.size
  if rows % mixing.group_size and not config.get("automatic"):
    say(
      f"warning: mixing.group_size={mixing.group_size} spans devices of {rows} images each, which "
      f"moves images between them in every step; a divisor of {rows} would not"
    )


def mixes(mixing: ml_collections.ConfigDict) -> bool:
  """Whether images are mixed at all, by mixup or CutMix."""
  return bool(mixing.mixup_alpha or mixing.cutmix_alpha or mixing.cutmix_minmax)


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
  """The fields of a nested config by dotted name, such as "data.batch_size"."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat
