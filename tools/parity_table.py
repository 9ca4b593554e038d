"""Runs the parity tests and prints every measured difference as a table.

    python tools/parity_table.py                    # Markdown, for the documentation
    python tools/parity_table.py --json             # one JSON object per line
    python tools/parity_table.py -k gfnet-ti        # a selection, as for pytest

Needs PyTorch and pytest. Takes minutes; the exit code is that of pytest.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent / "tests"
FILES = ("test_parity.py", "test_parity_float64.py")


class Collector:
  """A pytest plugin that keeps what the fixture `measured` recorded."""

  def __init__(self):
    self.rows = []

  def pytest_runtest_logreport(self, report):
    if report.when == "call":
      for what, (difference, at_most) in report.user_properties:
        self.rows.append(dict(what=what, measured=difference, at_most=at_most))


def markdown(rows: list[dict]) -> str:
  """A table of what was measured and its bound, two significant digits."""
  lines = ["| what, against which witness | measured | at most |", "|---|---|---|"]
  for row in rows:
    lines.append(f"| {row['what']} | {row['measured']:.1e} | {row['at_most']:.0e} |")
  return "\n".join(lines)


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("-k", default="", metavar="EXPRESSION", help="selects tests, as for pytest")
  parser.add_argument("--json", action="store_true", help="JSON lines in place of Markdown")
  arguments = parser.parse_args()

  collector = Collector()
  with contextlib.redirect_stdout(sys.stderr):  # the report of pytest
    files = [str(TESTS / name) for name in FILES]
    code = pytest.main([*files, "-m", "parity", "-k", arguments.k], plugins=[collector])
  if arguments.json:
    print("\n".join(map(json.dumps, collector.rows)))
  else:
    print(markdown(collector.rows))
  return code


if __name__ == "__main__":
  sys.exit(main())
