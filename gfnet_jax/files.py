"""Files that are there whole or not at all, and JSON that every reader takes."""

import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gfnet_jax.buckets import BucketPath
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable


def make_directory(directory: Path | BucketPath) -> None:
  """Creates a directory with its parents and makes sure that it can be written.

  A store has no directories, but for the names of what is in them.

  Raises:
    UserError: if not, or if its name is one that `check_name` refuses.
  """
  check_name(directory)
  probe = directory / ".write-test"
  try:
    if isinstance(directory, BucketPath):
      probe.write_bytes(b"")
    else:
      directory.mkdir(parents=True, exist_ok=True)
      probe.touch()
    probe.unlink(missing_ok=True)  # another process may have probed, too
  except FileExistsError as error:
    raise UserError(f"{directory} is a file, expected a directory; choose another name") from error
  except OSError as error:
    raise UserError(
      f"cannot write to {directory} ({error.strerror}); choose another directory or change its "
      "permissions"
    ) from error


def make_directory_of(file: Path) -> None:
  """`make_directory` of a file that will be written, before the work and not after it.

  Raises:
    UserError: as that, and if something else than a file has the name.
  """
  make_directory(file.parent)
  if file.exists() and not file.is_file():
    raise UserError(f"{file} is a directory or a device, expected a file; choose another name")


def check_name(directory: Path | BucketPath) -> None:
  """Raises UserError if a name is not the same in UTF-8, in which libraries in C++ take names.

  Letters beyond the encoding of the locale are not, nor are bytes that are no UTF-8.
  """
  if isinstance(directory, BucketPath):  # whose libraries take any
    return
  name = str(directory.absolute())
  try:
    same = name.encode() == os.fsencode(name)
  except UnicodeEncodeError:
    same = False
  if not same:
    raise UserError(
      f"the name of {printable(name, limit=1000)} is not UTF-8 in this locale (encoding "
      f"{sys.getfilesystemencoding()}); choose another name, or set LC_ALL=C.UTF-8"
    )


def write_atomically(path: Path | BucketPath, text: str) -> None:
  """Replaces the text of a file in one step: a kill leaves the old one or the new one."""
  if isinstance(path, BucketPath):
    path.write_bytes(text.encode())
    return
  with open_atomically(path) as file:
    file.write(text.encode())


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
  """Opens a file, for writing, that takes the place of another only when it is complete.

  An exception inside leaves the old one.

  Raises:
    OSError: if it cannot be written.
  """
  temporary = path.with_name(path.name + ".tmp")
  try:
    with temporary.open("wb") as file:
      yield file
    temporary.replace(path)
  except BaseException:  # an interruption, too
    temporary.unlink(missing_ok=True)
    raise


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
  """Yields an empty directory, which gets its name only when it is complete.

  An exception inside removes it.

  Args:
    path: where nothing is yet, in a directory that is there.

  Raises:
    OSError: if it cannot be written.
  """
  # Of a name that nobody else has: what is there may be the user's.
  outside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
  try:
    (inside := outside / "new").mkdir()  # with the permissions of any directory
    yield inside
    inside.rename(path)
  finally:  # after an interruption, too
    shutil.rmtree(outside, ignore_errors=True)


def to_json(value: Any, indent: int | None = None) -> str:
  """JSON of nested dictionaries and lists; null for numbers that are not finite.

  JSON has no NaN and no infinity, though Python writes them.
  """
  return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _finite(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
