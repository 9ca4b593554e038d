"""Folders of image files, one folder per class (the layout of torchvision's ImageFolder)."""

import os
from collections.abc import Iterator
from pathlib import Path

import ml_collections
import numpy as np

from gfnet_jax.data.sources.cache import Arrays, load_arrays, store_arrays
from gfnet_jax.data.sources.records import BadRecordError, Record, required_name
from gfnet_jax.errors import UserError

# As torchvision's ImageFolder; upper case counts, too.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class FolderSource:
  """Image files in DIRECTORY/CLASS/..., in the order of torchvision's ImageFolder.

  A class's label is the position of its folder among the sorted names. The listing is
  cached, and used until the modification time of one of the folders changes.

  Args:
    root: directory of the data set.
    split: directory below root that holds the folders of the classes; '' for root itself.

  Raises:
    UserError: if there is no such directory, it has no folders, or one has no images.
  """

  def __init__(self, root: str, split: str):
    self._directory = Path(root) / split
    if not self._directory.is_dir():
      raise UserError(f"directory {self._directory} not found; {_expected(root)}")
    listing = load_arrays("folder", self._directory)
    if listing is None or not _is_current(self._directory, listing):
      listing = list_images(self._directory)
      store_arrays("folder", self._directory, listing)
    self._paths, self._labels = listing["paths"], listing["labels"]
    self.class_names = [os.fsdecode(name) for name in listing["classes"].tolist()]

  def __len__(self) -> int:
    return len(self._paths)

  def record_names(self) -> list[bytes]:
    """The paths of the images below the directory of the split; see `fingerprint`."""
    return self._paths.tolist()

  def __getitem__(self, index: int) -> Record:
    path = self._directory / os.fsdecode(self._paths[index])
    try:
      return Record(path.read_bytes(), int(self._labels[index]), str(path))
    except OSError as error:
      raise BadRecordError(f"{path} cannot be read: {error.strerror}") from error


def open_folder(data: ml_collections.ConfigDict, split: str) -> FolderSource:
  """The source 'folder': image files in `data.name`/split/CLASS/."""
  return FolderSource(required_name(data), split)


def list_images(directory: Path) -> Arrays:
  """Finds the images of all classes below a directory.

  Returns:
    classes: (classes,) bytes: sorted names of the folders.
    paths: (images,) bytes: relative to the directory, class by class.
    labels: (images,) int32.
    folders, times: (folders,) bytes and int64: every directory that was visited and its
      modification time, in ns.

  Raises:
    UserError: if there are no folders, or one has no images.
  """
  times = [_modified(directory)]
  classes = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
  if not classes:
    raise UserError(
      f"{directory} holds no folders, expected one per class; set data.name and the splits "
      "so that DIRECTORY/SPLIT/CLASS/ holds the images"
    )
  paths, labels, folders = [], [], [""]
  for label, name in enumerate(classes):
    first = len(paths)
    for folder, time, files in sorted(_walk(directory / name)):
      folder = os.path.relpath(folder, directory)
      folders.append(folder)
      times.append(time)
      paths += (f"{folder}/{file}" for file in sorted(files) if file.lower().endswith(EXTENSIONS))
    if len(paths) == first:
      raise UserError(
        f"{directory / name} holds no images ({', '.join(EXTENSIONS)}); fill or remove it"
      )
    labels += [label] * (len(paths) - first)
  return dict(
    classes=_encode(classes),
    paths=_encode(paths),
    labels=np.array(labels, np.int32),
    folders=_encode(folders),
    times=np.array(times, np.int64),
  )


def _walk(folder: Path) -> Iterator[tuple[str, int, list[str]]]:
  """Every directory from here down, its modification time in ns, and its files.

  The time is read before the files are listed: a file added in between changes it once more.
  """
  below, files = [], []
  try:
    time = _modified(folder)
    with os.scandir(folder) as entries:
      for entry in entries:
        (below if entry.is_dir() else files).append(entry.name)
  except OSError as error:
    raise UserError(f"directory {folder} cannot be read: {error.strerror}") from error
  yield str(folder), time, files
  for name in below:
    yield from _walk(folder / name)


def _is_current(directory: Path, listing: Arrays) -> bool:
  try:
    return all(
      _modified(directory / os.fsdecode(folder)) == time
      for folder, time in zip(listing["folders"].tolist(), listing["times"].tolist(), strict=True)
    )
  except (OSError, KeyError):
    return False


def _modified(directory: Path) -> int:
  return directory.stat().st_mtime_ns


def _encode(names: list[str]) -> np.ndarray:
  """Names as bytes of equal length: one object instead of a million, and quick to pickle."""
  return np.array([os.fsencode(name) for name in names])


def _expected(root: str) -> str:
  if not Path(root).is_dir():
    return "set data.name to the directory of the images"
  folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
  return f"{root} holds {', '.join(folders[:5]) or 'no folders'}; set the split to one of them"
