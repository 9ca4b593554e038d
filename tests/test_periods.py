"""What is due after which steps."""

from hypothesis import given
from hypothesis import strategies as st

from gfnet_jax.training.periods import Every


def due(every: Every, steps: int) -> list[int]:
  return [step for step in range(steps + 1) if every.due(step)]


def test_by_hand():
  assert due(Every(4), 13) == [4, 8, 12]
  assert due(Every(4, last=13), 13) == [4, 8, 12, 13]
  assert due(Every(2.5), 10) == [2, 5, 8, 10]  # halves are rounded to even numbers
  assert due(Every(0), 100) == []
  assert due(Every(0, last=7), 7) == [7]
  assert due(Every(0.3), 4) == [1, 2, 3, 4]


@given(st.floats(1, 1000), st.integers(1, 3000))
def test_every_multiple_is_due_at_the_nearest_step(period, last):
  multiples = [round(i * period) for i in range(1, int(last / period) + 2)]
  expected = {step for step in multiples if step <= last} | {last}
  assert due(Every(period, last), last) == sorted(expected)


def test_periods_that_are_absurd():
  assert due(Every(5e-324), 3) == [1, 2, 3]
  assert due(Every(1e-300, last=2), 3) == [1, 2, 3]
  assert due(Every(1e300, last=2), 3) == [2]
