"""SHA-256 sums of a directory, so that no damaged file is ever taken for data."""

import hashlib
import json
import os
import re
import stat
from pathlib import Path

from gfnet_jax.buckets import BucketPath
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

SUMS = "sha256.json"
LARGEST_TEXT = 16 * 2**20  # bytes of a JSON file; more is none of ours
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DamagedError(UserError):
  """A file of a checkpoint is missing, altered or unexpected."""

  def __init__(self, directory: Path | BucketPath, what: str):
    super().__init__(f"checkpoint {directory} is damaged: {what}")
    self.what = what


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
    UserError: for a file that cannot be read, as for want of permission.
  """
  expected = _read_sums(directory)
  found = _files(directory)
  for name in sorted(expected.keys() | set(found)):
    if name not in expected:
      raise DamagedError(directory, f"{printable(name)} does not belong to it")
    if name not in found:
      raise DamagedError(directory, f"{printable(name)} is missing")
    if _regular_sha256(directory, name) != expected[name]:
      raise DamagedError(directory, f"{printable(name)} was altered")


def read_verified(directory: Path, name: str) -> bytes:
  """The content of one file, compared with its sum; the other files are not looked at.

  Raises:
    As `verify_checksums`.
  """
  expected, content = _read_sums(directory).get(name), _read(directory, name)
  if hashlib.sha256(content).hexdigest() != expected:
    raise DamagedError(directory, f"{name} was altered")
  return content


def parse_json(text: bytes) -> object:
  """The value of a JSON text.

  Raises:
    ValueError: if it is none, or nested too deeply to be one of ours.
  """
  try:
    return json.loads(text.decode())
  except RecursionError as error:
    raise ValueError("nested too deeply") from error


def _read_sums(directory: Path) -> dict[str, str]:
  text = _read(directory, SUMS)
  try:
    sums = parse_json(text)
  except ValueError as error:
    raise DamagedError(directory, f"{SUMS} cannot be read") from error
  if not isinstance(sums, dict) or text.decode() != _serialize(sums):
    raise DamagedError(directory, f"{SUMS} was altered")
  if not all(isinstance(value, str) and _SHA256.fullmatch(value) for value in sums.values()):
    raise DamagedError(directory, f"{SUMS} holds what is not a SHA-256 sum")
  return sums


def _read(directory: Path, name: str) -> bytes:
  path = directory / name
  _check_regular(directory, name)
  try:
    with path.open("rb") as file:
      content = file.read(LARGEST_TEXT + 1)
  except OSError as error:
    raise _unreadable(path, error) from error
  if len(content) > LARGEST_TEXT:
    raise DamagedError(directory, f"{name} is larger than {LARGEST_TEXT} bytes")
  return content


def _check_regular(directory: Path, name: str) -> None:
  """Links could lead anywhere, and reading a pipe would not end."""
  path = directory / name
  try:
    mode = path.lstat().st_mode
  except (FileNotFoundError, NotADirectoryError) as error:
    raise DamagedError(directory, f"{printable(name)} is missing") from error
  except OSError as error:
    raise _unreadable(path, error) from error
  if not stat.S_ISREG(mode):
    raise DamagedError(directory, f"{printable(name)} was altered: it is not a regular file")


def _unreadable(path: Path, error: OSError) -> UserError:
  """Not damaged, perhaps: nothing is set aside for that."""
  return UserError(f"cannot read {path} ({error.strerror}); make it readable, or move it away")


def _serialize(sums: dict[str, str]) -> str:
  """The one text for these sums, so that even a blank too many is noticed."""
  return json.dumps(sums, indent=1) + "\n"


def _files(directory: Path) -> list[str]:
  """Relative names of all files but the sums; symbolic links are named, never followed.

  Raises:
    UserError: for a directory that cannot be read.
  """

  def fail(error: OSError) -> None:
    raise _unreadable(Path(error.filename), error) from error

  names = []
  for root, folders, files in os.walk(directory, onerror=fail):
    links = [name for name in folders if (Path(root) / name).is_symlink()]
    names += [(Path(root) / name).relative_to(directory).as_posix() for name in files + links]
  return sorted(name for name in names if name != SUMS)


def _regular_sha256(directory: Path, name: str) -> str:
  _check_regular(directory, name)
  try:
    return _sha256(directory / name)
  except OSError as error:
    raise _unreadable(directory / name, error) from error


def _sha256(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
