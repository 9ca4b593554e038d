"""The files that describe a TFDS data set, looked at before TFDS reads them; no TFDS here.

TFDS reads whatever there is, and imports the modules that features.json names.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

INFO = "dataset_info.json"
FEATURES = "features.json"
CLASS = "pythonClassName"  # the key of features.json that names what to import
PACKAGE = "tensorflow_datasets."
KINDS = {"array_record": "tfds", "tfrecord": "tfrecord"}  # formats by TFDS's name, kinds by ours
NAME = re.compile(r"\w{1,100}(/[\w.,=+-]{1,100})?")  # of a data set, with one of its configs
VERSION = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})", re.ASCII)
DEFAULT_ROOT = "~/tensorflow_datasets"
MAX_BYTES = 2**22  # of a file


def prepared_versions(name: str, data_dir: str) -> list[Path]:
  """The directories of all versions of a data set, NAME or NAME/CONFIG, that are there.

  They come in the order of the versions, config by config. What TFDS has begun and not
  finished is not among them, as its name is not a version.

  Args:
    name: by which TFDS would be asked for it.
    data_dir: directory of all data sets; empty for TFDS's default.
  """
  name = name.partition(":")[0]
  if not NAME.fullmatch(name):
    return []
  root = data_root(data_dir)
  found = [*root.glob(f"{name}/*/{INFO}"), *root.glob(f"{name}/*/*/{INFO}")]
  versions = (info.parent for info in found if VERSION.fullmatch(info.parent.name))
  return sorted(versions, key=lambda path: (path.parent, *map(int, path.name.split("."))))


def data_root(data_dir: str) -> Path:
  """The directory of all data sets; of an empty name, TFDS's default."""
  return Path(os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or DEFAULT_ROOT))  # noqa: PTH111


def file_format(directory: Path) -> str | None:
  """The format of a data set by TFDS's name, such as "tfrecord"; None if it does not say."""
  try:
    info = _read_json(directory / INFO)
  except UserError:  # opening it will say so
    return None
  # TFDS wrote no format as long as there was no other.
  return info.get("fileFormat", "tfrecord") if isinstance(info, dict) else None


def split_names(directory: Path) -> list[str]:
  """The names of a data set's splits.

  Raises:
    UserError: if its description cannot be read.
  """
  info = _read_json(directory / INFO)
  try:
    return [str(split["name"]) for split in info["splits"]]
  except (KeyError, TypeError) as error:
    raise UserError(f"{directory / INFO} names no splits; copy the data set again") from error


def check_info_files(directory: Path) -> None:
  """Makes sure that TFDS can be given a directory.

  Raises:
    UserError: if a description is missing, is not a small file or not JSON, or names other features
      than TFDS's own.
  """
  _read_json(directory / INFO)
  for path in sorted(directory.iterdir()):
    if path.suffix in (".json", ".txt"):
      _check_file(path)
  if not (directory / FEATURES).exists():  # as those that TFDS's own code describes
    return
  for name in _class_names(_read_json(directory / FEATURES)):
    if not (isinstance(name, str) and name.startswith(PACKAGE)):
      raise UserError(
        f"{directory / FEATURES} has a feature of {printable(name)!r}, expected {PACKAGE}...; "
        "prepare the data set again without it"
      )


def _read_json(path: Path) -> Any:
  _check_file(path)
  try:
    return json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    reason = "nested too deeply" if isinstance(error, RecursionError) else printable(error)
    raise UserError(f"{path} cannot be read ({reason}); copy the data set again") from error


def _check_file(path: Path) -> None:
  try:
    if path.is_file() and path.stat().st_size <= MAX_BYTES:
      return
    reason = "not a file of at most 4 MiB"
  except OSError as error:
    reason = error.strerror
  raise UserError(f"{path} cannot be read ({reason}); copy the data set again")


def _class_names(features: Any) -> Iterator[Any]:
  """All values of the key that names what to import, at any depth."""
  pending = [features]
  while pending:
    value = pending.pop()
    if isinstance(value, dict):
      if CLASS in value:
        yield value[CLASS]
      pending += value.values()
    elif isinstance(value, list):
      pending += value
