"""The lines of metrics.jsonl and performance.jsonl: reading what a run wrote, damaged or not."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LONGEST_LINE = 2**20  # bytes; a longer one is read in parts, none of which is a line


class Line(NamedTuple):
  """A line of a file.

  Attributes:
    number: from 1.
    text: with its end, or None for a damaged line.
    values: numbers by name, "step" among them, None for one that was not finite; {} if damaged.
    whole: whether the line ends: half a line at the end of a file is what a kill leaves.
  """

  number: int
  text: str | None
  values: dict[str, Any]
  whole: bool


def read_metric_lines(path: Path) -> Iterator[Line]:
  """Yields the lines of a file, the damaged ones as well.

  Raises:
    OSError: if the file cannot be read.
  """
  number = 1
  with path.open("rb") as file:
    while line := file.readline(LONGEST_LINE):
      whole = line.endswith(b"\n")
      values = _values_of(line)
      yield Line(number, line.decode() if values else None, values, whole)
      number += whole


def _values_of(line: bytes) -> dict[str, Any]:
  """The values of a line as a run writes it; {} for any other."""
  try:
    text = line.decode()
    values = json.loads(text)
    written = json.dumps(values) + "\n" == text  # not a blank more
  except (ValueError, RecursionError):  # no UTF-8, no JSON, or thousands of brackets
    return {}
  if not written or not isinstance(values, dict) or type(values.get("step")) is not int:
    return {}
  return values if all(map(_is_written, values.values())) else {}


def _is_written(value: Any) -> bool:
  """Whether `files.to_json` writes such a value for a number."""
  return value is None or (type(value) in (int, float) and math.isfinite(value))


def describe_damaged(numbers: list[int], name: str) -> str:
  """What is wrong with a file: its damaged lines, the first five by number."""
  listed = ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
  return f"line {listed} of {name} cannot be read"
