"""Numbers that no run can work with are refused."""

import pytest

from configs import default
from configs.digits import get_config
from gfnet_jax.errors import UserError
from gfnet_jax.training.config_rules import RULES, check_config, check_profile, flatten


def test_the_defaults_are_accepted():
  check_config(get_config())


@pytest.mark.parametrize(
  ("field", "value", "expected"),
  [
    ("seed", -1, "at least 0, and finite"),
    ("num_epochs", float("inf"), "more than 0, and finite"),
    ("num_epochs", 0.0, "more than 0, and finite"),
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
    ("profile.first_step", -1, "at least 0, and finite"),
  ],
)
def test_numbers_out_of_range(field, value, expected):
  config = get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=rf"^{field} is {value!r}, expected {expected}"):
    check_config(config)


def test_a_profile_that_ends_before_it_begins():
  config = get_config()
  config.profile.update(first_step=9, last_step=8)
  with pytest.raises(UserError, match=r"profile\.last_step is 8, expected at least 9"):
    check_config(config)


def test_a_profile_that_begins_after_the_end():
  config = get_config()
  config.profile.update(first_step=50, last_step=60)
  check_profile(config, 50)
  with pytest.raises(UserError, match=r"first_step is 50, expected at most the run's 49"):
    check_profile(config, 49)


def test_every_field_has_a_rule_and_every_rule_a_field():
  assert flatten(default.get_config().to_dict()).keys() == RULES.keys()
