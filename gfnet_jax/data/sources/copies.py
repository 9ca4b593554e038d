"""Data sets in a store: copied to a local disk, as reading at random over a network is slow.

The copy is in $XDG_CACHE_HOME/gfnet_jax/data, or ~/.cache/gfnet_jax/data. Files of it that have the
size of their object are taken as they are, so that it is made once. It is refused if the disk has
not the room.
"""

import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

import ml_collections

from gfnet_jax.buckets import BucketPath, as_directory
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable
from gfnet_jax.transfers import for_each, is_plain

KEPT_FREE = 2**30  # bytes of the disk that a copy leaves
UNFINISHED = ".copying-"


def with_copies(data: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The `data` section of a config with local directories in place of those in a store.

  Raises:
    UserError: as `copied`.
  """
  name, data_dir = data.get("name"), data.get("data_dir")
  new_name, new_dir = copied(name or "", data_dir or "")
  if (new_name, new_dir) == (name or "", data_dir or ""):
    return data
  data = ml_collections.ConfigDict(data)
  data.update(name=new_name, data_dir=new_dir)
  return data


def copied(name: str, data_dir: str) -> tuple[str, str]:
  """The name and the data_dir of a data set, local: copied if they are in a store.

  Args:
    name: of a data set, or a directory.
    data_dir: directory of all TFDS data sets, of which only this one is copied.

  Raises:
    UserError: if the store refuses, or the disk has not the room.
  """
  if isinstance(directory := as_directory(name), BucketPath):
    return str(_copy(directory)), data_dir
  root = as_directory(data_dir)
  if not isinstance(root, BucketPath) or directory.is_dir():
    return name, data_dir
  first = name.partition(":")[0].partition("/")[0]
  return name, str(_copy(root / first).parent)


def _copy(directory: BucketPath) -> Path:
  cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
  local = cache / "gfnet_jax" / "data" / str(directory).replace("://", "/", 1)
  try:
    sizes = directory.sizes()
    missing = {name: size for name, size in sizes.items() if _size(local / name) != size}
    if not sizes or not all(map(is_plain, (*sizes, str(directory).replace("://", "/", 1)))):
      raise UserError(
        f"{printable(directory)} holds no data set, expected a folder of images or a TFDS data "
        "set; correct the name"
      )
    local.mkdir(parents=True, exist_ok=True)
    _remove_others(local, sizes)
    _check_room(directory, local, sum(missing.values()))
    if missing:
      total = sum(missing.values()) / 2**30
      print(f"Copying {len(missing)} files ({total:.2f} GiB) of {directory} to {local}", flush=True)
    for_each(missing, lambda name: _fetch(directory / name, local / name))
  except OSError as error:
    reason = error.strerror or error
    raise UserError(f"cannot copy {directory} to {local} ({reason}); see docs/pods.md") from error
  return local


def _check_room(directory: BucketPath, local: Path, needed: int) -> None:
  free = shutil.disk_usage(local).free - KEPT_FREE
  if needed > free:
    raise UserError(
      f"{directory} needs {needed / 2**30:.1f} GiB in {local}, which has room for "
      f"{max(free, 0) / 2**30:.1f}; set XDG_CACHE_HOME to a larger disk, or mount the bucket and "
      "name that directory (docs/pods.md)"
    )


def _remove_others(local: Path, names: Collection[str]) -> None:
  """Removes what is no longer in the store, but not what another process is just fetching."""
  for path in local.rglob("*"):
    name = path.relative_to(local).as_posix()
    if path.is_file() and name not in names and UNFINISHED not in name:
      path.unlink(missing_ok=True)


def _size(path: Path) -> int | None:
  return path.stat().st_size if path.is_file() else None


def _fetch(source: BucketPath, path: Path) -> None:
  """Copies an object; under another name first, as several processes may do so."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as temporary:
    new = Path(temporary) / "new"
    source.download(new)
    new.replace(path)
