"""What is allowed in a config: a row per field, and the rules that involve several."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from jax.sharding import Mesh

from gfnet_jax.data.on_device.erasing import MODES
from gfnet_jax.distributed import say
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

NONFINITE = ("stop", "skip", "rollback")
SHORTEST_TIMEOUT = 5.0  # seconds, of several heartbeats


class Range(NamedTuple):
  """Values that a field may have, and how an error describes them."""

  holds: Callable[[Any], bool]
  expected: str


class Rule(NamedTuple):
  """The rule of one field.

  Attributes:
    range: the values that it may have.
    may_change: whether a run may go on with another value: the field changes no result.
  """

  range: Range
  may_change: bool = False


def _choice(*names: str) -> Range:
  return Range(names.__contains__, f"one of {', '.join(names)}")


ANY = Range(lambda value: True, "anything")  # or checked where it is used
AT_LEAST_ONE = Range(lambda value: value >= 1, "at least 1")
AT_LEAST_ZERO = Range(lambda value: 0 <= value < math.inf, "at least 0, and finite")
POSITIVE = Range(lambda value: 0 < value < math.inf, "more than 0, and finite")
BELOW_ONE = Range(lambda value: 0 <= value < 1, "0 up to, but not, 1")
SHARE = Range(lambda value: 0 <= value <= 1, "0 to 1")
TIMEOUT = Range(
  lambda value: value == 0 or value >= SHORTEST_TIMEOUT,
  f"0 (never) or at least {SHORTEST_TIMEOUT:.0f}",
)

RULES = {
  "name": Rule(ANY, may_change=True),
  "seed": Rule(AT_LEAST_ZERO),
  "num_epochs": Rule(POSITIVE),
  "log_every_steps": Rule(AT_LEAST_ONE, may_change=True),
  "eval_every_epochs": Rule(POSITIVE, may_change=True),
  "precision": Rule(ANY),
  "init_checkpoint": Rule(ANY, may_change=True),
  "ema_decay": Rule(BELOW_ONE),
  "on_nonfinite": Rule(_choice(*NONFINITE), may_change=True),
  "sharding": Rule(ANY, may_change=True),
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
  "model.drop_path_rate": Rule(ANY),
  "model.backend": Rule(ANY),
  "model.remat": Rule(ANY, may_change=True),
  "model.scan": Rule(ANY),
  "optimizer.learning_rate": Rule(AT_LEAST_ZERO),
  "optimizer.reference_batch_size": Rule(AT_LEAST_ZERO),
  "optimizer.schedule": Rule(ANY),
  "optimizer.warmup_epochs": Rule(ANY),
  "optimizer.warmup_learning_rate": Rule(AT_LEAST_ZERO),
  "optimizer.final_learning_rate": Rule(AT_LEAST_ZERO),
  "optimizer.beta1": Rule(BELOW_ONE),
  "optimizer.beta2": Rule(BELOW_ONE),
  "optimizer.eps": Rule(POSITIVE),
  "optimizer.weight_decay": Rule(AT_LEAST_ZERO),
  "optimizer.clip_norm": Rule(AT_LEAST_ZERO),
  "optimizer.accumulate_steps": Rule(AT_LEAST_ONE),
  "data.source": Rule(ANY),
  "data.name": Rule(ANY),
  "data.data_dir": Rule(ANY, may_change=True),
  "data.train_split": Rule(ANY),
  "data.eval_split": Rule(ANY),
  "data.batch_size": Rule(AT_LEAST_ONE),
  "data.eval_batch_size": Rule(AT_LEAST_ONE, may_change=True),
  "data.repeats": Rule(ANY),
  "data.max_bad_fraction": Rule(SHARE, may_change=True),
  "data.fast_decode": Rule(ANY),
  "data.verify_crc": Rule(ANY, may_change=True),
  "data.reading.threads": Rule(AT_LEAST_ZERO, may_change=True),
  "data.reading.prefetch": Rule(AT_LEAST_ZERO, may_change=True),
  "data.reading.workers": Rule(AT_LEAST_ZERO, may_change=True),
  "augment.crop": Rule(ANY),
  "augment.padding": Rule(ANY),
  "augment.flip": Rule(ANY),
  "augment.interpolation": Rule(ANY),
  "augment.auto_augment": Rule(ANY),
  "augment.color_jitter": Rule(ANY),
  "mixing.mixup_alpha": Rule(ANY),
  "mixing.cutmix_alpha": Rule(ANY),
  "mixing.cutmix_minmax": Rule(ANY),
  "mixing.prob": Rule(ANY),
  "mixing.switch_prob": Rule(ANY),
  "mixing.mode": Rule(ANY),
  "mixing.group_size": Rule(ANY),
  "mixing.smoothing": Rule(ANY),
  "mixing.new_box": Rule(ANY),
  "distillation.teacher": Rule(ANY),
  "distillation.kind": Rule(ANY),
  "distillation.alpha": Rule(SHARE),
  "distillation.temperature": Rule(POSITIVE),
  "erasing.probability": Rule(SHARE),
  "erasing.max_count": Rule(AT_LEAST_ONE),
  "erasing.mode": Rule(_choice(*MODES)),
  "checkpoints.keep_last": Rule(AT_LEAST_ONE, may_change=True),
  "checkpoints.keep_every_epochs": Rule(ANY, may_change=True),
  "checkpoints.every_steps": Rule(ANY, may_change=True),
  "profile.first_step": Rule(AT_LEAST_ZERO, may_change=True),
  "profile.last_step": Rule(ANY, may_change=True),
}
NO_RULE = Rule(ANY)  # of fields that a config of one's own adds


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises UserError for the first field whose value is out of its range."""
  fields = flatten(config.to_dict())
  for field, value in fields.items():
    allowed = RULES.get(field, NO_RULE).range
    if not allowed.holds(value):
      raise UserError(f"{field} is {value!r}, expected {allowed.expected}")
  first, last = config.profile.first_step, config.profile.last_step
  if first and last < first:
    raise UserError(f"profile.last_step is {last}, expected at least {first}")


def check_same_run(
  before: dict[str, Any], now: dict[str, Any], workdir: Path | str, images: str | None = None
) -> None:
  """Holds the config and the data of a continued run against those that it began with.

  A field that only one of them has came or went with another version of the code; that
  is only a warning, once for all such fields.

  Args:
    before: values by dotted name, as from `flatten`.
    now: the same of the present config.
    workdir: of the run, for the message.
    images: how the training images or their classes differ, "" for not at all: then
      `data.name` may be another path to them; None if it is not known.

  Raises:
    UserError: naming all that differs and may not change.
  """
  fields = [
    field
    for field in sorted(before.keys() & now.keys())
    if before[field] != now[field] and not _may_change(field, before[field], now[field], images)
  ]
  parts = [
    f"with {field}={printable(before[field])}, this one has {printable(now[field])}"
    for field in fields
  ]
  parts += [f"on other training data: {images}"] * bool(images)
  if parts:
    back = ["the fields" if len(fields) > 1 else "the field"] * bool(fields)
    back += ["the data"] * bool(images)
    raise UserError(
      f"{workdir} holds a run {'; '.join(parts)}; set another --workdir, or {' and '.join(back)} "
      "back to continue"
    )
  if before.get("num_epochs") != now.get("num_epochs"):
    say(
      f"num_epochs is {now.get('num_epochs')} instead of {before.get('num_epochs')}: from here on "
      "the learning rate is that of the longer schedule, usually a jump upwards; the result is not "
      "that of a run which was as long from its beginning"
    )
  new, gone = _only_in(now, before), _only_in(before, now)
  if new or gone:
    parts = [f"with {', '.join(new)}"] * bool(new) + [f"without {', '.join(gone)}"] * bool(gone)
    say(f"warning: this run began with other config fields; it goes on {' and '.join(parts)}")


def _may_change(field: str, before: Any, now: Any, images: str | None) -> bool:
  if field == "num_epochs":  # a longer run
    return isinstance(before, int | float) and isinstance(now, int | float) and before < now
  if field == "data.name":  # another path to the same
    return images == ""
  return RULES.get(field, NO_RULE).may_change


def _only_in(fields: dict[str, Any], others: dict[str, Any]) -> list[str]:
  """The fields that the others lack; None leaves a choice to the model, as if it were not there."""
  names = sorted(fields.keys() - others.keys())
  return [f"{name}={printable(fields[name])}" for name in names if fields[name] is not None]


def check_profile(config: ml_collections.ConfigDict, num_steps: int) -> None:
  """Raises UserError if the run has no step that is to be recorded."""
  if config.profile.first_step > num_steps:
    raise UserError(
      f"profile.first_step is {config.profile.first_step}, expected at most the run's {num_steps}"
    )


def check_groups(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
  """Warns if mixup has to move images between devices in every step.

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


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
  """The fields of a nested config by dotted name, such as "data.batch_size"."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat
