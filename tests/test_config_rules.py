"""Numbers that no run can work with are refused."""

import re

import ml_collections
import pytest

from configs import default
from configs.digits import get_config
from gfnet_jax.errors import UserError
from gfnet_jax.training.config_rules import RULES, check_config, check_steps, flatten


def test_the_defaults_are_accepted():
  check_config(get_config())


@pytest.mark.parametrize(
  ("field", "value", "expected"),
  [
    ("seed", -1, "at least 0 and at most 4294967295, an integer"),
    ("seed", 10**23, "at least 0 and at most 4294967295"),
    ("num_epochs", float("inf"), "more than 0, at most 1000000"),
    ("num_epochs", 1e300, "more than 0, at most 1000000"),
    ("num_epochs", 0.0, "more than 0, at most 1000000"),
    ("eval_every_epochs", 5e-324, "more than 0, and finite"),
    ("eval_every_epochs", float("nan"), "more than 0, and finite"),
    ("optimizer.learning_rate", 1e39, "at least 0, and finite"),
    ("optimizer.warmup_epochs", float("-inf"), "at least 0, and finite"),
    ("optimizer.eps", 1e-300, "more than 0, and finite"),
    ("augment.flip", float("nan"), "0 to 1"),
    ("augment.flip", -0.5, "0 to 1"),
    ("augment.padding", -1, "at least 0 and at most 65536"),
    ("augment.color_jitter", float("inf"), "0 to 100"),
    ("mixing.mixup_alpha", float("nan"), "at least 0, and finite"),
    ("mixing.prob", 1.5, "0 to 1"),
    ("mixing.switch_prob", float("nan"), "0 to 1"),
    ("mixing.smoothing", 1.0, "0 up to, but not, 1"),
    ("mixing.cutmix_minmax", (0.1, 0.5, 1.0), "None or a pair of fractions"),
    ("mixing.cutmix_minmax", (0.1, float("nan")), "None or a pair of fractions"),
    ("checkpoints.every_steps", -1, "at least 0 and"),
    ("checkpoints.keep_every_epochs", float("nan"), "at least 0, and finite"),
    ("checkpoints.keep_last", 2**31, "at least 1 and"),
    ("data.reading.threads", 10**6, "at least 0 and at most 1024"),
    ("data.eval_batch_size", 10**12, "at least 1 and at most 1048576"),
    ("data.batch_size", 10**23, "at least 1 and at most 1048576"),
    ("erasing.max_count", 10**9, "at least 1 and at most 1000"),
    ("stall_timeout", float("nan"), r"0 \(never\) or at least 5"),
    ("stall_timeout", float("inf"), r"0 \(never\) or at least 5"),
    ("data.name", "a\0b", "text"),
    ("ema_decay", 1.0, "0 up to, but not, 1"),
    ("optimizer.clip_norm", -1.0, "at least 0, and finite"),
    ("optimizer.weight_decay", -0.1, "at least 0, and finite"),
    ("optimizer.accumulate_steps", 0, "at least 1"),
    ("optimizer.learning_rate", -1.0, "at least 0, and finite"),
    ("optimizer.learning_rate", float("nan"), "at least 0, and finite"),
    ("optimizer.beta2", 1.5, "0 up to, but not, 1"),
    ("optimizer.eps", 0.0, "more than 0, and finite"),
    ("distillation.temperature", 0.0, "more than 0, and finite"),
    ("distillation.alpha", 1.5, "0 to 1"),
    ("erasing.probability", 2.0, "0 to 1"),
    ("erasing.max_count", 0, "at least 1"),
    ("stall_timeout", 1.0, r"0 \(never\) or at least 5"),
    ("profile.first_step", -1, "at least 0 and"),
  ],
)
def test_numbers_out_of_range(field, value, expected):
  config = get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(
    UserError, match=rf"^{field} is {re.escape(repr(value))}, expected {expected}"
  ):
    check_config(config)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    *(("seed", "abc"), ("seed", True), ("num_epochs", None), ("num_epochs", "3"), ("data.name", 3)),
    *(("on_nonfinite", ["stop"]), ("model.scan", 2), ("mixing.new_box", 1), ("erasing.mode", 3)),
    *(("mixing.cutmix_minmax", "ab"), ("data.reading.workers", 1.5), ("sharding", None)),
  ],
)
def test_values_of_another_type_in_a_config_of_ones_own(field, value):
  """Where no default value enforces its type."""
  fields = flatten(get_config().to_dict()) | {field: value}
  config = ml_collections.ConfigDict(unflatten(fields), allow_dotted_keys=False)
  with pytest.raises(UserError, match=rf"^{field} is {re.escape(repr(value))}, expected "):
    check_config(config)


def unflatten(fields: dict) -> dict:
  nested = {}
  for name, value in fields.items():
    *path, last = name.split(".")
    section = nested
    for part in path:
      section = section.setdefault(part, {})
    section[last] = value
  return nested


@pytest.mark.parametrize("field", ["seed", "data.batch_size", "profile.first_step"])
def test_a_config_without_a_field(field):
  fields = flatten(get_config().to_dict())
  del fields[field]
  with pytest.raises(UserError, match=rf"^the config has no field {field}; begin with"):
    check_config(ml_collections.ConfigDict(unflatten(fields)))


def test_more_steps_than_can_be_counted():
  check_steps(get_config(), 2**31 - 1)
  with pytest.raises(UserError, match=r"the run has 2147483648 steps, expected at most 2147483647"):
    check_steps(get_config(), 2**31)


def test_a_profile_that_ends_before_it_begins():
  config = get_config()
  config.profile.update(first_step=9, last_step=8)
  with pytest.raises(UserError, match=r"profile\.last_step is 8, expected at least 9"):
    check_config(config)


def test_a_profile_that_begins_after_the_end():
  config = get_config()
  config.profile.update(first_step=50, last_step=60)
  check_steps(config, 50)
  with pytest.raises(UserError, match=r"first_step is 50, expected at most the run's 49"):
    check_steps(config, 49)


def test_every_field_has_a_rule_and_every_rule_a_field():
  assert flatten(default.get_config().to_dict()).keys() == RULES.keys()
