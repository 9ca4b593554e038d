"""Folders of image files, one folder per class (the layout of torchvision's ImageFolder)."""

import os
import stat
from pathlib import Path

import ml_collections

from gfnet_jax.console import say
from gfnet_jax.data.sources.cache import Arrays, cache_file, load_arrays, store_arrays
from gfnet_jax.data.sources.listing import (
  describe,
  find_evidence,
  is_left_out,
  is_listing,
  list_images,
)
from gfnet_jax.data.sources.records import BadRecordError, Record, required_name
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

MAX_BYTES = 2**29  # of a file: more than any image that can be decoded


class FolderSource:
  """Image files in DIRECTORY/CLASS/..., in the order of torchvision's ImageFolder.

  A class's label is the position of its folder among the sorted names, which are sorted as
  integers if all of them are. Names that begin with a dot are left out. The listing is
  cached, and used until one of the folders changes; a line says so.

  Args:
    root: directory of the data set.
    split: directory below root that holds the folders of the classes; '' for root itself.
    quiet: says nothing of the listing.

  Attributes:
    class_names: in the order of the labels.
    labels: (images,), int32.

  Raises:
    UserError: if the directory is missing or has no folders, or one of them has no images.
  """

  def __init__(self, root: str, split: str, *, quiet: bool = False):
    self._directory = Path(root) / split
    if not os.path.isdir(self._directory):  # noqa: PTH112 (False for a name too long as well)
      raise UserError(f"directory {self._directory} not found; {_expected(root)}")
    listing, lines = _listing(self._directory)
    for line in () if quiet else lines:
      say(line)
    self._paths, self.labels = listing["paths"], listing["labels"]
    self.class_names = [os.fsdecode(name) for name in listing["classes"].tolist()]

  def __len__(self) -> int:
    return len(self._paths)

  def record_names(self) -> list[bytes]:
    """The paths of the images below the directory of the split; see `fingerprint`."""
    return self._paths.tolist()

  def __getitem__(self, index: int) -> Record:
    path = self.path(index)
    return Record(read_file(path), int(self.labels[index]), str(path))

  def path(self, index: int) -> Path:
    """Of an image."""
    return self._directory / os.fsdecode(self._paths[index])


def open_folder(data: ml_collections.ConfigDict, split: str) -> FolderSource:
  """The source 'folder': image files in `data.name`/split/CLASS/."""
  return FolderSource(required_name(data), split)


def _listing(directory: Path) -> tuple[Arrays, list[str]]:
  """The images of a directory, from the cache if that is current; and what to say of them."""
  listing = load_arrays("listing", directory)
  evidence = None
  if listing is not None and is_listing(listing):
    evidence = find_evidence(directory, listing)
  if evidence:
    file = cache_file("listing", directory)
    lines = [f"{directory}: {evidence}, so the listing comes from the cache, {file}"]
  else:
    listing, lines = list_images(directory), []
    store_arrays("listing", directory, listing)
  return listing, lines + describe(directory, listing)


def read_file(path: Path) -> bytes:
  """The bytes of a file.

  Raises:
    BadRecordError: if it cannot be read; nothing waits for a pipe and the like.
  """
  try:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 (only it takes a descriptor)
      status = os.fstat(descriptor)
      if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        raise BadRecordError(f"{printable(path)} is not a file of at most {MAX_BYTES >> 20} MiB")
      return file.readall()
  except OSError as error:
    raise BadRecordError(f"{printable(path)} cannot be read: {error.strerror}") from error


def _expected(root: str) -> str:
  if not os.path.isdir(root):  # noqa: PTH112
    return "set data.name (eval.py: --data) to the directory of the images"
  with os.scandir(root) as entries:
    found = sorted(
      entry.name for entry in entries if not is_left_out(entry.name) and entry.is_dir()
    )
  folders = ", ".join(printable(name, 40) for name in found[:5]) or "no folders"
  return f"{root} holds {folders}; set the split (eval.py: --split) to one of them"
