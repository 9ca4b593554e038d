"""What the benchmarks of computations share: timing in turns, the machine, tables."""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from tqdm import tqdm

from gfnet_jax.errors import UserError
from gfnet_jax.files import make_directory, write_atomically

T, U = TypeVar("T"), TypeVar("U")

LOAD_BEFORE = os.getloadavg()[0]  # of the last minute, when this is imported: before any work
WARM_UP = 10  # rounds
PAGES_PER_SECOND = 1000  # of fresh memory, 4 MB, whose clearing takes about a hundredth of the time
FULL = 1.1  # load per core that a benchmark makes by itself, and a quiet machine beside it


def count(text: str) -> int:
  """A flag's positive integer."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text} found, expected an integer of at least 1")
  return int(text)


def progress(items: Collection[T], unit: str) -> Iterator[T]:
  """The items, with a bar while they last; quiet off a terminal."""
  return iter(tqdm(items, unit=unit, leave=False, disable=None))


def in_threads(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
  """The results in order; XLA compiles programs of several threads at once."""
  with ThreadPoolExecutor() as pool:
    yield from pool.map(function, items)


def time_in_turns(
  functions: dict[str, Callable[[], object]], rounds: int, turn: float = 0.0
) -> dict[str, list[float]]:
  """Times every function once per round, so that a busy machine slows all alike.

  Rounds that don't count come first, at most WARM_UP of them, until the process touches hardly any
  fresh memory: in its first calls that costs a training step on a CPU more than its arithmetic.

  Args:
    functions: by name; what they return is waited for if jax computes it.
    rounds: turns of every function; every second round is in reverse order.
    turn: seconds for which a function repeats in its turn, at least once.

  Returns:
    Seconds per call by name, a value per round.
  """
  repetitions = {}
  for name, function in functions.items():
    _seconds(function, 1)  # compiles
    repetitions[name] = max(1, int(turn / _seconds(function, 1)))
  for _ in range(WARM_UP):
    before = _fresh_pages()
    seconds = sum(_seconds(function, 1) for function in functions.values())
    if _fresh_pages() - before < PAGES_PER_SECOND * seconds:
      break
  times = {name: [] for name in functions}
  for i in progress(range(rounds), "round"):
    for name in list(functions)[:: 1 if i % 2 == 0 else -1]:
      times[name].append(_seconds(functions[name], repetitions[name]))
  return times


def _fresh_pages() -> int:
  """Pages of memory that this process has touched for the first time, so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _seconds(function: Callable[[], object], repetitions: int) -> float:
  """Of a call. An accelerator has the next one queued meanwhile; a CPU might run both at once."""
  queued = jax.default_backend() != "cpu"
  start = time.perf_counter()
  for _ in range(repetitions):
    result = function()
    if not queued:
      jax.block_until_ready(result)
  jax.block_until_ready(result)
  return (time.perf_counter() - start) / repetitions


def quartiles_ms(seconds: list[float]) -> tuple[float, float, float]:
  """The lower quartile, the median and the upper quartile in milliseconds."""
  return _quartiles([1e3 * value for value in seconds])


def ratios(numerators: list[float], denominators: list[float]) -> tuple[float, float, float]:
  """The quartiles of the ratios within the rounds."""
  return _quartiles([a / b for a, b in zip(numerators, denominators, strict=True)])


def _quartiles(values: list[float]) -> tuple[float, float, float]:
  """Of a single value, that value."""
  return tuple(np.quantile(values, (0.25, 0.5, 0.75)).tolist())


def relative_l2(actual: object, expected: object) -> float:
  """The L2 norm of the difference of two arrays over that of the second, in float64."""
  expected = np.asarray(expected, np.float64)
  difference = np.linalg.norm((np.asarray(actual, np.float64) - expected).ravel())
  return float(difference / np.linalg.norm(expected.ravel()))


def warn_of_load(load: float, when: str) -> None:
  """Warns if other programs compete for the cores: quartiles may look calm all the same."""
  cores = os.cpu_count()
  if load > FULL * cores:
    print(
      f"warning: {when} the load of this machine is {load:.1f} on {cores} cores; other programs "
      "disturb these times: repeat on a quiet machine",
      file=sys.stderr,
      flush=True,
    )


def machine() -> dict[str, object]:
  """Where and with what this runs; the loads show whether others were running too."""
  packages = ("jax", "jaxlib", "flax", "numpy", "torch", "onnx", "onnxruntime")
  return {
    "platform": jax.default_backend(),
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "processor": _processor(),
    "cores": os.cpu_count(),
    "load_before": LOAD_BEFORE,
    "load_after": os.getloadavg()[0],
    "python": platform.python_version(),
    "versions": {name: _version(name) for name in packages},
    "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
  }


def _processor() -> str:
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
  except (OSError, StopIteration):
    return platform.processor()


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def command() -> str:
  """The command line of this program, without directories."""
  return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def report(
  title: str, rows: list[dict[str, object]], options: argparse.Namespace, digits: int = 4
) -> None:
  """Prints the rows as a table under the machine; writes both if options.output is set.

  Args:
    title: of the benchmark.
    rows: by column; all have the same.
    options: the flags; `output` is a file or None.
    digits: shown of numbers below 1000; the file has all.

  Raises:
    UserError: afterwards, if a column whose name begins with "difference" exceeds the column
      "at_most" of its row, or is no number.
  """
  result = {"benchmark": title, "command": command(), "machine": machine(), "rows": rows}
  print(json.dumps(result["machine"]))
  cells = [list(rows[0])] + [[_cell(value, digits) for value in row.values()] for row in rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  for row in cells:
    print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
  if options.output:
    make_directory(options.output.parent)
    write_atomically(options.output, json.dumps(result, indent=2) + "\n")
  if getattr(options, "timed", True):
    warn_of_load(result["machine"]["load_after"], "after the benchmark")
  check_differences(rows)


def check_differences(rows: list[dict[str, object]]) -> None:
  """Raises UserError as `report` does."""
  exceeding = [
    (row, column)
    for row in rows
    for column, value in row.items()
    if column.startswith("difference") and value is not None and not value <= row["at_most"]
  ]
  if exceeding:
    row, column = exceeding[0]
    what = " ".join(value for value in row.values() if isinstance(value, str))
    more = f", and {len(exceeding) - 1} more" if exceeding[1:] else ""
    raise UserError(
      f"{column} of {what} is {row[column]:.3g}, expected at most {row['at_most']:.3g}{more}; the "
      "results are wrong on this machine: do not trust its times"
    )


def _cell(value: object, digits: int) -> str:
  if isinstance(value, float):
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"
  return "-" if value is None else str(value)
