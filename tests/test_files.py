"""JSON that every reader takes, and names that every library takes."""

import json
import math
import os
import subprocess
import sys

import hypothesis
import pytest
from helpers import ROOT
from hypothesis import strategies as st

from gfnet_jax.checkpoints.finding import find_checkpoint
from gfnet_jax.errors import UserError
from gfnet_jax.files import check_name, make_directory, open_atomically, to_json, write_atomically

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
@hypothesis.settings(max_examples=50)
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


@pytest.mark.parametrize("name", [b"\xff", b"caf\xe9", b"deep/\x80/er", b"half \xe7\x8c"])
def test_names_that_are_no_utf_8_are_refused_and_not_made(tmp_path, name, monkeypatch):
  directory = tmp_path / os.fsdecode(name)
  for refuse in (make_directory, find_checkpoint):
    with pytest.raises(UserError, match=r"name of .*\\udc.* is not UTF-8 in this locale"):
      refuse(directory)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["café", "猫", "ß and 🙂"])
def test_other_names_are_as_good_as_any(tmp_path, name):
  check_name(tmp_path / name)
  make_directory(tmp_path / name)


def test_the_locale_decides_which_letters_can_be_written(tmp_path):
  code = f"""if True:
    from pathlib import Path
    from gfnet_jax.errors import UserError
    from gfnet_jax.files import make_directory
    for name in ({os.fsencode("é")!r}, {os.fsencode("猫")!r}):
      try:
        make_directory(Path({str(tmp_path)!r}) / name.decode("ascii", "surrogateescape"))
      except UserError as error:
        assert "(encoding ascii); choose another name, or set LC_ALL=C.UTF-8" in str(error)
      else:
        raise AssertionError(name)
  """
  ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | ascii_only, check=True)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_a_file_that_is_not_complete_leaves_the_old_one(tmp_path, error):
  path = tmp_path / "file"
  write_atomically(path, "é\n")
  with pytest.raises(error), open_atomically(path) as file:
    file.write(b"half")
    raise error
  assert path.read_bytes() == "é\n".encode()
  with open_atomically(path) as file:
    file.write(b"new")
    assert path.read_bytes() == "é\n".encode()
  assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"new"}
