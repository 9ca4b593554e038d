"""The file that locks a work directory: one of many processes creates it, or takes it over.

Nothing else is asked of a file system than to create a file exclusively and to rename: flock is
missing on some network mounts. A store need not rename: whoever creates an object that is called
after the run that is over may replace its lock.
"""

import contextlib
import shutil
from pathlib import Path
from typing import Any

from gfnet_jax.buckets import BucketPath
from gfnet_jax.errors import UserError
from gfnet_jax.training.heartbeat import read_entry


def create(path: Path | BucketPath, text: str) -> bool:
  """Returns whether there was no lock; of several processes that try, one succeeds."""
  if isinstance(path, BucketPath):
    return _create_object(path, text)
  try:
    file = path.open("x")
  except FileExistsError:
    return False
  try:
    with file:
      file.write(text)
  except OSError:
    path.unlink(missing_ok=True)
    raise
  return True


def _create_object(path: BucketPath, text: str) -> bool:
  try:
    path.create(text.encode())
  except FileExistsError:  # perhaps by the same request, whose answer was lost
    return path.read_bytes() == text.encode()
  return True


def take_over(
  path: Path | BucketPath, holder: dict[str, Any], text: str, run: str
) -> dict[str, Any] | None:
  """Replaces the lock of a run that is over; of several processes that try, one succeeds.

  Args:
    path: of the lock.
    holder: what the lock says.
    text: of the new one.
    run: of the new one.

  Returns:
    None if this process succeeded; else what the lock says now.
  """
  if isinstance(path, BucketPath):
    return _take_over_object(path, holder, text)
  old = path.with_name(f"lock-{run}.tmp")  # which no other one writes
  with contextlib.suppress(FileNotFoundError):  # it ended properly meanwhile
    path.rename(old)
    found = read_entry(old)
    if found != holder:  # another one was faster
      old.rename(path)
      return found
    try:
      old.unlink()
    except OSError:  # a directory is in its place
      old.rename(path)
      raise
  return None if create(path, text) else read_entry(path)


def _take_over_object(path: BucketPath, holder: dict[str, Any], text: str) -> dict[str, Any] | None:
  claim = path.parent / f"lock-over-{holder.get('run', 'unknown')}.json"
  if not _create_object(claim, text):
    raise UserError(
      f"another process is just taking over {path.parent} from a run that is over; if there is "
      f"none, because it was killed at that moment, remove {claim}"
    )
  found = read_entry(path)
  if taken := found == holder:
    path.write_bytes(text.encode())
  claim.unlink(missing_ok=True)
  # Else it ended properly meanwhile, or another one was faster.
  return None if taken or create(path, text) else read_entry(path)


def remove_directory(directory: Path | BucketPath) -> None:
  """Removes the files in a directory and, if there is such a thing, the directory."""
  if isinstance(directory, Path):
    shutil.rmtree(directory, ignore_errors=True)
    return
  with contextlib.suppress(OSError):  # heartbeats say of themselves that they have finished
    for path in directory.iterdir():
      path.unlink(missing_ok=True)


def is_missing(path: Path | BucketPath) -> bool:
  """Whether a file is known not to be there; a network that fails tells nothing."""
  try:
    if isinstance(path, BucketPath):
      return not path.exists()
    path.lstat()
  except (FileNotFoundError, NotADirectoryError):
    return True
  except OSError:
    return False
  return False
