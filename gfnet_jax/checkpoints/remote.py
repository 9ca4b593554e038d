"""Checkpoints in a store without rename: complete while their last object, the sums, is there.

So the sums are written last and removed first. What has a step's name without them was cut off,
and the next run removes it.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gfnet_jax.buckets import BucketPath
from gfnet_jax.checkpoints.checksums import SUMS, DamagedError, verify_checksums
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable
from gfnet_jax.transfers import for_each, is_plain

PENDING = ".pending-"


def is_complete(path: BucketPath) -> bool:
  """Whether a checkpoint is all there, damaged or not."""
  return (path / SUMS).is_file()


def complete(pending: Path, final: BucketPath) -> None:
  """Uploads a checkpoint that was written to a local directory, and verified by its sums."""
  names = [path.relative_to(pending).as_posix() for path in pending.rglob("*") if not path.is_dir()]
  replaced = is_complete(final)  # saved at a preemption, and now again with its evaluation
  target = final.parent / f"{PENDING}{final.name}" if replaced else final
  for group in _sums_last(names):
    for_each(group, lambda name: (target / name).upload(pending / name))
  if replaced:
    _take_place(target, final)


def clear_up(directory: BucketPath) -> None:
  """Removes what earlier runs or failures left; never while something is being written."""
  for path in directory.iterdir():
    step = path.name.removeprefix(PENDING)
    if step.isdigit() and not is_complete(path):
      remove(path)
    elif step.isdigit() and step != path.name:  # killed before it took its place
      _take_place(path, directory / step)


def remove(path: BucketPath) -> None:
  """Removes all objects of a checkpoint, the sums first."""
  for group in reversed(_sums_last(path.objects())):
    for_each(group, lambda name: (path / name).unlink(missing_ok=True))


def set_aside(path: BucketPath) -> None:
  """Moves a damaged checkpoint to another name; cut off, it leaves the old one, or both."""
  _copy(path, path.parent / f"damaged-{path.name}-{time.time_ns()}")
  remove(path)


@contextlib.contextmanager
def on_disk(directory: Path | BucketPath, step: int) -> Iterator[Path]:
  """A context with a directory of checkpoints on a local disk that has one of a step.

  It is the directory itself if that is local, else one with a verified copy, which goes with the
  context. What is found damaged inside is named as it is called in the store.

  Raises:
    DamagedError: if the objects are not those of the sums.
    UserError: if they cannot be fetched.
  """
  if not isinstance(directory, BucketPath):
    yield directory
    return
  path = directory / f"{step:08d}"
  with tempfile.TemporaryDirectory(prefix="gfnet_jax-") as temporary:
    local = Path(temporary)
    try:
      _download(path, local / path.name, path.objects())
      verify_checksums(local / path.name)
      yield local
    except DamagedError as error:
      raise DamagedError(path, error.what) from error


@contextlib.contextmanager
def parts_on_disk(path: Path | BucketPath, names: tuple[str, ...]) -> Iterator[Path]:
  """As `on_disk`, of one checkpoint and only some of its files, which nobody has verified."""
  if not isinstance(path, BucketPath):
    yield path
    return
  with tempfile.TemporaryDirectory(prefix="gfnet_jax-") as temporary:
    local = Path(temporary) / path.name
    try:
      _download(path, local, [name for name in names if (path / name).is_file()])
      yield local
    except DamagedError as error:
      raise DamagedError(path, error.what) from error


def _download(path: BucketPath, local: Path, names: list[str]) -> None:
  local.mkdir()
  for name in names:
    if not is_plain(name):  # objects may be called anything
      raise DamagedError(path, f"{printable(name)} does not belong to it")
    (local / name).parent.mkdir(parents=True, exist_ok=True)
  try:
    for_each(names, lambda name: (path / name).download(local / name))
  except FileNotFoundError as error:
    raise DamagedError(path, "an object of it was removed while it was read") from error
  except OSError as error:
    raise UserError(f"cannot read {path} ({error.strerror}); try again later") from error


def _take_place(new: BucketPath, final: BucketPath) -> None:
  """Puts a complete checkpoint in the place of an older one; cut off, `clear_up` does the rest."""
  remove(final)
  _copy(new, final)
  remove(new)


def _copy(path: BucketPath, target: BucketPath) -> None:
  for group in _sums_last(path.objects()):
    for_each(group, lambda name: (path / name).copy_to(target / name))


def _sums_last(names: list[str]) -> list[list[str]]:
  return [[name for name in names if name != SUMS], [name for name in names if name == SUMS]]
