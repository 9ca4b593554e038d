"""What comparisons of whole training runs share: doing them, and a file of those that are done."""

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from benchmarks._measure import command, machine
from tqdm import tqdm

import gfnet_jax
from gfnet_jax.errors import UserError
from gfnet_jax.files import make_directory, write_atomically
from gfnet_jax.text import printable

Row = dict[str, Any]
FILE = "results.json"


def do_runs(
  config, wanted: Sequence[Row], output: Path, do: Callable[..., Row | None]
) -> list[Row] | None:
  """Does the runs that are still to be done.

  Args:
    config: of all of them; results of other settings are not continued.
    wanted: what tells every run from the others, such as dict(mixer="fnet", seed=0).
    output: the directory of their results, FILE, and their work directories.
    do: do(**what) does one, and returns its results, or None if a signal stopped it.

  Returns:
    A row for every wanted run, with its results; None if a signal stopped them.

  Raises:
    UserError: if the output directory holds runs with other settings, or a run cannot be continued.
  """
  done = read_results(output, config)
  bar = tqdm(wanted, unit="run", disable=None)
  for number, what in enumerate(bar, 1):
    described = ", ".join(f"{name} {printable(value)}" for name, value in what.items())
    bar.set_postfix_str(described)
    if any(what.items() <= row.items() for row in done):
      continue
    if bar.disable:  # no terminal
      print(f"run {number} of {len(wanted)}: {described}", file=sys.stderr, flush=True)
    results = do(**what)
    if results is None:
      bar.close()
      print("Stopped by a signal with everything saved; the same command continues from here")
      return None
    done.append(what | results)
    write_results(output, config, done)
    jax.clear_caches()  # of this run's programs
  return [row for row in done if any(what.items() <= row.items() for what in wanted)]


def train_quietly(config, workdir: Path) -> Row | None:
  """What `train` returns, without images per second; what it prints goes into log.txt."""
  make_directory(workdir)
  with (
    (workdir / "log.txt").open("a") as log,
    contextlib.redirect_stdout(log),
    contextlib.redirect_stderr(log),
  ):
    results = gfnet_jax.train(config, workdir)
  return results and {name: v for name, v in results.items() if name != "images_per_second"}


def read_results(output: Path, config) -> list[Row]:
  """The finished runs in a directory; none if it holds none.

  Raises:
    UserError: if they have other settings, or the file is no such list.
  """
  path = output / FILE
  try:
    results = json.loads(path.read_text())
    settings, rows = results["config"], results["runs"]
  except FileNotFoundError:
    return []
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{path} cannot be read ({printable(error)}), expected results of this program; remove it, "
      "or choose another --output"
    ) from error
  if settings != json.loads(config.to_json()):
    raise UserError(
      f"{path} holds runs with other settings; repeat the command that made it "
      f"({printable(results.get('command'), 400)}), or choose another --output"
    )
  return rows


def write_results(output: Path, config, rows: list[Row]) -> None:
  """Replaces the file of the finished runs."""
  results = {"command": command(), "machine": machine(), "config": json.loads(config.to_json())}
  write_atomically(output / FILE, json.dumps(results | {"runs": rows}, indent=2) + "\n")
