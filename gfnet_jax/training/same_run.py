"""Whether a config and its data are those of the run that is to be continued."""

from pathlib import Path
from typing import Any

from gfnet_jax.console import say
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable
from gfnet_jax.training.config_rules import NO_RULE, RULES


def check_same_run(
  before: dict[str, Any], now: dict[str, Any], workdir: Path | str, images: str | None = None
) -> None:
  """Holds the config and the data of a continued run against those that it began with.

  A field that only one of them has came or went with another version of the code; that
  is only a warning, once for all such fields. So are more epochs, and initial weights that
  the run did not begin with.

  Args:
    before: values by dotted name, as from `flatten`.
    now: the same of the present config.
    workdir: of the run, for the message.
    images: how the training images or their classes differ, "" for not at all; None if it
      is not known, then `data.name` may not be another path either.

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
  initial = now.get("init_checkpoint")
  if initial and initial != before.get("init_checkpoint"):
    say(
      f"warning: {workdir} holds a run, which continues; init_checkpoint={printable(initial)} has "
      "no effect: to begin with these weights, set another --workdir"
    )
  new, gone = _only_in(now, before), _only_in(before, now)
  if new or gone:
    parts = [f"with {', '.join(new)}"] * bool(new) + [f"without {', '.join(gone)}"] * bool(gone)
    say(f"warning: this run began with other config fields; it continues {' and '.join(parts)}")


def _may_change(field: str, before: Any, now: Any, images: str | None) -> bool:
  if field == "num_epochs":  # a longer run
    return isinstance(before, int | float) and isinstance(now, int | float) and before < now
  if field == "data.name":  # another path to the same
    return images is not None  # whether they differ is told by the data, not by their path
  return RULES.get(field, NO_RULE).may_change


def _only_in(fields: dict[str, Any], others: dict[str, Any]) -> list[str]:
  """The fields that the others lack, but for None (the model's choice) and what is merely off."""
  off = {n for n, v in fields.items() if v is None or (not v and RULES.get(n, NO_RULE).may_change)}
  names = sorted(fields.keys() - others.keys() - off)
  return [f"{name}={printable(fields[name])}" for name in names]
