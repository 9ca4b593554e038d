"""SHA-256 sums of a directory, so that no damaged file is ever taken for data."""

import hashlib
import json
import os
from pathlib import Path

from gfnet_jax.errors import UserError

SUMS = "sha256.json"


class DamagedError(UserError):
  """A file of a checkpoint is missing, altered or unexpected."""


def write_checksums(directory: Path) -> None:
  """Writes the sums of all files of a directory into its sha256.json, last.

  A power failure then loses none of the directory's files.
  """
  sums = {name: _sha256(directory / name) for name in _files(directory)}
  (directory / SUMS).write_text(_serialize(sums))
  for path in (*directory.rglob("*"), directory):
    flush_to_disk(path)


def flush_to_disk(path: Path) -> None:
  """Waits until a file, or the names in a directory, are where no power failure harms them."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def verify_checksums(directory: Path) -> None:
  """Compares all files of a directory with its sha256.json.

  Raises:
    DamagedError: naming the first file that is missing, altered or unexpected.
  """
  try:
    text = (directory / SUMS).read_text()
    expected = json.loads(text)
  except (OSError, ValueError) as error:
    raise DamagedError(f"checkpoint {directory} is damaged: {SUMS} cannot be read") from error
  if not isinstance(expected, dict) or text != _serialize(expected):
    raise DamagedError(f"checkpoint {directory} is damaged: {SUMS} was altered")
  found = _files(directory)
  for name in sorted(expected.keys() | set(found)):
    if name not in expected:
      raise DamagedError(f"checkpoint {directory} is damaged: {name} does not belong to it")
    if name not in found:
      raise DamagedError(f"checkpoint {directory} is damaged: {name} is missing")
    if _sha256(directory / name) != expected[name]:
      raise DamagedError(f"checkpoint {directory} is damaged: {name} was altered")


def _serialize(sums: dict[str, str]) -> str:
  """The one text for these sums, so that even a blank too many is noticed."""
  return json.dumps(sums, indent=1) + "\n"


def _files(directory: Path) -> list[str]:
  """Relative names of all files but the sums; symbolic links are named, never followed."""
  names = []
  for root, folders, files in os.walk(directory):
    links = [name for name in folders if (Path(root) / name).is_symlink()]
    names += [(Path(root) / name).relative_to(directory).as_posix() for name in files + links]
  return sorted(name for name in names if name != SUMS)


def _sha256(path: Path) -> str:
  if path.is_symlink() or not path.is_file():
    return "not a regular file"
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
