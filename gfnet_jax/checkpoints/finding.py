"""Which checkpoints a directory holds, which of them is meant, and which is the best."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gfnet_jax.buckets import BucketPath, as_directory
from gfnet_jax.checkpoints import disk, remote
from gfnet_jax.checkpoints.checksums import DamagedError
from gfnet_jax.checkpoints.metadata import METADATA, metric_of
from gfnet_jax.checkpoints.reading import checkpoint_path, read_metadata
from gfnet_jax.errors import UserError
from gfnet_jax.files import check_name

_STEP = re.compile(r"[0-9]{8}|[1-9][0-9]{8,9}")  # as `checkpoint_path` writes it


def list_steps(directory: Path | BucketPath) -> list[int]:
  """The steps of the complete checkpoints in a directory, ascending."""
  if not directory.is_dir():
    return []
  paths = [path for path in directory.iterdir() if _STEP.fullmatch(path.name)]
  if isinstance(directory, BucketPath):
    paths = filter(remote.is_complete, paths)
  return sorted(int(path.name) for path in paths)


def best_step(directory: Path | BucketPath, metric: str) -> int | None:
  """The step with the greatest metric, the later one of equals; None without any.

  Raises:
    DamagedError: for a checkpoint whose metric cannot be known.
  """
  try:
    return best_of({step: read_metadata(directory, step) for step in list_steps(directory)}, metric)
  except DamagedError as error:
    error.args = (f"{error}; without it the best cannot be told: choose a step, or move it away",)
    raise


def best_of(metadata: Mapping[int, Mapping[str, Any]], metric: str) -> int | None:
  """As `best_step`, of the metadata by step."""
  values = {step: metric_of(of_step, metric) for step, of_step in metadata.items()}
  evaluated = [step for step, value in values.items() if value is not None]
  return max(evaluated, key=lambda step: (values[step], step), default=None)


def place_of(directory: Path | BucketPath) -> ModuleType:
  """How checkpoints come and go there: `disk`, or `remote` in a store."""
  return remote if isinstance(directory, BucketPath) else disk


def set_aside(directory: Path | BucketPath, step: int) -> None:
  """Renames a damaged checkpoint, so that it counts neither as the newest nor as the best.

  Raises:
    UserError: if it cannot be renamed.
  """
  path = checkpoint_path(directory, step)
  try:
    place_of(directory).set_aside(path)
  except OSError as error:
    raise UserError(
      f"cannot set {path} aside ({error.strerror}), which is damaged; move it away"
    ) from error


def find_checkpoint(
  directory: Path | BucketPath | str, which: str | int = "last", *, best_metric: str = "top1"
) -> tuple[Path | BucketPath, int]:
  """Finds a checkpoint in a work directory, a directory of checkpoints, or itself.

  Args:
    directory: what the user named.
    which: "last", "best", or a step: a number, or the name of its directory.
    best_metric: key in the metadata's "metrics" by which the best is the greatest.

  Returns:
    (directory of checkpoints, step).

  Raises:
    UserError: if there is none, or the directory is a checkpoint and which means another.
  """
  directory = as_directory(directory)
  check_name(directory)
  number = re.fullmatch(r"0*(\d{1,18})", str(which), re.ASCII)
  step = int(number[1]) if number else None
  if _STEP.fullmatch(directory.name) and (directory / METADATA).is_file():
    if which != "last" and step != int(directory.name):
      raise UserError(f"{directory} is one checkpoint, without {which!r}; name {directory.parent}")
    return directory.parent, int(directory.name)
  nested = directory / "checkpoints"
  directory = nested if nested.is_dir() else directory
  steps = list_steps(directory)
  if not steps:
    raise UserError(
      f"no checkpoint in {directory}; expected a work directory of train.py, or a directory "
      "written by convert_torch_weights.py"
    )
  if which in ("last", "best"):
    step = steps[-1] if which == "last" else best_step(directory, best_metric)
  if step is None and which == "best":
    raise UserError(f"no checkpoint in {directory} has the metric {best_metric}; take last")
  if step not in steps:
    found = ", ".join(map(str, steps))
    raise UserError(f"no checkpoint {which!r} in {directory}, expected last, best or {found}")
  return directory, step
