"""JSON that every reader takes."""

import json
import math

import hypothesis
import pytest
from hypothesis import strategies as st

from gfnet_jax.files import to_json

VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def refuse(constant):
  raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize(
  ("value", "text"),
  [
    ({"loss": math.nan, "images": 3}, '{"loss": null, "images": 3}'),
    ([math.inf, -math.inf, 1.5], "[null, null, 1.5]"),
    ({"a": {"b": (1, math.nan)}}, '{"a": {"b": [1, null]}}'),
    (math.nan, "null"),
    ("NaN", '"NaN"'),
  ],
)
def test_what_is_not_finite_is_null(value, text):
  assert to_json(value) == text


@hypothesis.given(VALUES)
@hypothesis.settings(max_examples=50, deadline=None)
def test_the_rest_is_as_python_writes_it(value):
  text = to_json(value)
  found = json.loads(text, parse_constant=refuse)
  if math.isfinite(sum(_numbers(value))):
    assert text == json.dumps(value)
    assert found == value


def _numbers(value):
  """The floats in a value, those that are finite as 0: their sum must not overflow."""
  if isinstance(value, float):
    yield 0.0 if math.isfinite(value) else value
  elif isinstance(value, dict | list):
    for item in value.values() if isinstance(value, dict) else value:
      yield from _numbers(item)
