"""What a run says of steps that are not finite, and when it is no success."""

from types import SimpleNamespace

import pytest

from configs.digits import get_config
from gfnet_jax.errors import UserError
from gfnet_jax.training.nonfinite import NonFinite
from gfnet_jax.training.resume import Progress


def state(step=0, bad_steps=0):
  return SimpleNamespace(step=step, bad_steps=bad_steps)


@pytest.fixture
def policy(tmp_path):
  config = get_config()
  config.on_nonfinite = "skip"
  return NonFinite(config, tmp_path, {}, state())


def test_skipped_steps_are_counted_since_the_last_line(policy, capsys):
  policy.count_skipped(10, 1, finite=True)
  policy.count_skipped(20, 1, finite=True)
  policy.count_skipped(30, 4, finite=True)
  assert capsys.readouterr().out.splitlines() == [
    "warning: 1 step since the last line of metrics, up to step 10, was not finite, and skipped: "
    "1 of 10 so far",
    "warning: 3 steps since the last line of metrics, up to step 30, were not finite, and skipped: "
    "4 of 30 so far",
  ]


def test_a_run_that_continues_counts_from_where_it_was(tmp_path, capsys):
  policy = NonFinite(get_config(), tmp_path, {}, state(step=50, bad_steps=7))
  policy.count_skipped(60, 7, finite=True)
  assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
  ("steps", "skipped", "finite_line", "results", "message"),
  [
    (9, 9, None, {"loss": 2.3}, "not finite, and skipped: 9 of 9; the model is not trained"),
    (1, 1, None, {"loss": 2.3}, "not finite, and skipped: 1 of 1; the model"),
    (100, 51, 100, {"loss": 2.3}, "not finite, and skipped: 51 of 100"),
    (100, 20, 80, {"loss": 2.3}, "none of the last 20 steps was finite: they were skipped"),
    (100, 0, 100, {"loss": float("nan")}, "the loss of the last evaluation is not finite"),
    (100, 1, 100, {"loss": float("inf")}, "the loss of the last evaluation is not finite"),
  ],
)
def test_a_model_that_was_not_trained_is_no_success(
  policy, steps, skipped, finite_line, results, message
):
  if finite_line:
    policy.count_skipped(finite_line, 0, finite=True)
  with pytest.raises(UserError, match=message):
    policy.check_result(state(steps, skipped), Progress(steps, results))


@pytest.mark.parametrize(
  ("steps", "skipped", "finite_line"), [(100, 0, 0), (100, 9, 91), (4, 2, 3)]
)
def test_a_few_skipped_steps_are_no_failure(policy, steps, skipped, finite_line):
  policy.count_skipped(finite_line, 0, finite=True)
  policy.check_result(state(steps, skipped), Progress(steps, {"loss": 2.3}))
