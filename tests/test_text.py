"""Foreign text on the terminal."""

import hypothesis
import pytest
from hypothesis import strategies as st

from gfnet_jax.text import printable


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("blocks.0.filter", "blocks.0.filter"),
    ("Käse 猫", "Käse 猫"),
    ("\x1b[2Jname", "\\x1b[2Jname"),
    ("two\nlines\r", "two\\nlines\\r"),
    ("left\u202eright", "left\\u202eright"),
    ("half \udc80", "half \\udc80"),
    ("tag \U000e0041", "tag \\U000e0041"),
    (3, "3"),
  ],
)
def test_what_is_invisible_is_escaped(text, expected):
  assert printable(text) == expected


def test_what_is_too_long_loses_its_middle():
  assert printable("a" * 100 + "b" * 100, limit=15) == "aaaaa ... bbbbb"
  assert printable("a" * 15, limit=15) == "a" * 15


@hypothesis.given(st.text(st.characters()))
def test_the_result_is_one_printable_line(text):
  assert printable(text).isprintable()
