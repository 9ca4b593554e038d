"""The images in folders of classes: listing them, and whether an earlier listing still holds.

An earlier listing holds if the times of all folders are as they were. Where those of one tell
nothing, or those of two are the same, none are believed, and the names in the folders are compared.
No time tells when a link that led nowhere leads to a folder again, so these links are looked at.
"""

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gfnet_jax.data.sources.cache import Arrays
from gfnet_jax.data.sources.file_times import silent_devices, state, tells
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

# As torchvision's ImageFolder; upper case counts, too.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
INTEGER = re.compile(r"-?[0-9]+")
COARSEST = 2 * 10**9  # ns, the steps in which FAT counts time; others are finer
SHOWN = 5  # kinds of files in a message
MAX_REPEATS = 1000  # visits of folders of one class that links have led to before
# What macOS, Windows, Linux and storage servers put among a user's folders.
SYSTEM_FOLDERS = frozenset(
  ("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found")
  + ("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot")
)


def list_images(directory: Path) -> Arrays:
  """Finds the images of all classes below a directory.

  Names that begin with a dot are left out, and SYSTEM_FOLDERS. The images come in the order of
  torchvision's ImageFolder, their classes in the order of `class_order`.

  Returns:
    classes: (classes,) bytes: names of the folders, in the order of the labels.
    paths: (images,) bytes: relative to the directory, folder by folder.
    labels: (images,) int32.
    others, other_counts: (kinds,) bytes and int64: files that are passed over, by extension.
    folders, states, contents: (folders,) bytes: every directory that was visited, and
      fingerprints of its times and of the names in it.
    dangling: (links,) bytes: links that lead nowhere, which count as files.
    listed: (1,) int64: when this began, in ns since the epoch.

  Raises:
    UserError: if there are no folders, one has no images, cannot be read or holds itself, or
      links lead to the same folders again and again.
  """
  listed = time.time_ns()
  top = _read(directory)
  names = sorted(top.below)
  if not names:
    raise UserError(
      f"{directory} holds no folders, expected one per class; set data.name and the splits "
      "so that DIRECTORY/SPLIT/CLASS/ holds the images (eval.py: --data and --split)"
    )
  classes = class_order(names)
  label_of = {name: label for label, name in enumerate(classes)}
  paths, labels, visited = [], [], [(".", top)]
  others = Counter({"beside the folders of the classes": len(top.files)})
  others.update(map(_named, top.system))
  for name in names:
    first = len(paths)
    for path, folder in sorted(_walk(directory / name, directory)):
      path = os.path.relpath(path, directory)
      visited.append((path, folder))
      others.update(_passed_over(folder))
      paths += [f"{path}/{file}" for file in sorted(folder.files) if _is_image(file)]
    if len(paths) == first:
      raise UserError(
        f"{directory / printable(name)} holds no images ({', '.join(EXTENSIONS)}); fill or "
        "remove it"
      )
    labels += [label_of[name]] * (len(paths) - first)
  return dict(
    classes=_encode(classes),
    paths=_encode(paths),
    labels=np.array(labels, np.int32),
    others=_encode([kind for kind, count in others.most_common() if count]),
    other_counts=np.array([count for _, count in others.most_common() if count], np.int64),
    folders=_encode([path for path, _ in visited]),
    states=_encode([folder.state for _, folder in visited]),
    contents=_encode([folder.contents for _, folder in visited]),
    dangling=_encode([f"{path}/{name}" for path, folder in visited for name in folder.dangling]),
    listed=np.array([listed], np.int64),
  )


def holds_images(folder: Path) -> bool:
  """Whether there is an image anywhere below a folder.

  Raises:
    UserError: if that cannot be told, as `list_images`.
  """
  return any(_is_image(file) for _, found in _walk(folder, folder.parent) for file in found.files)


def find_evidence(directory: Path, listing: Arrays) -> str | None:
  """What shows that `list_images` would find the same now, for a message; None if nothing does."""
  folders, states, contents = (listing[key].tolist() for key in ("folders", "states", "contents"))
  paths = [directory / os.fsdecode(folder) for folder in folders]
  try:
    found = [path.stat() for path in paths]
    if [state(status).encode() for status in found] != states:
      return None
    if any((directory / os.fsdecode(link)).is_dir() for link in listing["dangling"].tolist()):
      return None
    latest, silent = int(listing["listed"][0]) - COARSEST, silent_devices()
    different = len({(status.st_mtime_ns, status.st_ctime_ns) for status in found}) == len(found)
    if different and all(tells(status, latest, silent) for status in found):
      return "no folder has changed"
    if [_read(path).contents.encode() for path in paths] == contents:
      return "the times of its folders tell nothing, but the names in all of them are as before"
  except (OSError, UserError):  # `list_images` will say what
    pass
  return None


def is_listing(arrays: Arrays) -> bool:
  """Whether arrays are what `list_images` returns."""
  bytes_of = ("classes", "paths", "others", "folders", "states", "contents", "dangling")
  kinds = dict.fromkeys(bytes_of, "S") | dict.fromkeys(("labels", "other_counts", "listed"), "i")
  if arrays.keys() != kinds.keys():
    return False
  if any(arrays[key].ndim != 1 or arrays[key].dtype.kind != kinds[key] for key in kinds):
    return False
  sizes = {key: len(array) for key, array in arrays.items()}
  return (
    sizes["paths"] == sizes["labels"] > 0
    and sizes["folders"] == sizes["states"] == sizes["contents"] > 0
    and sizes["others"] == sizes["other_counts"]
    and sizes["listed"] == 1
    and 0 <= arrays["labels"].min() <= arrays["labels"].max() < sizes["classes"]
  )


def describe(directory: Path, listing: Arrays) -> list[str]:
  """What a user should know about a listing: a line each for odd files, and for integers."""
  lines = []
  counts = listing["other_counts"].tolist()
  if counts:
    kinds = [printable(os.fsdecode(kind), 40) for kind in listing["others"].tolist()]
    shown = [f"{count} {kind}" for count, kind in zip(counts, kinds, strict=True)]
    rest = [f"{sum(counts[SHOWN:])} others"] if len(counts) > SHOWN else []
    lines.append(
      f"{directory}: passed over what is not an image of a class, {sum(counts)} in all "
      f"({', '.join(shown[:SHOWN] + rest)}); images are {', '.join(EXTENSIONS)}"
    )
  classes = [os.fsdecode(name) for name in listing["classes"].tolist()]
  if classes != sorted(classes):
    shown = classes if len(classes) < 6 else [*classes[:3], "...", classes[-1]]
    lines.append(
      f"{directory}: all classes are named by integers and ordered as such: {', '.join(shown)}"
    )
  return lines


def is_left_out(name: str) -> bool:
  """Whether a file or folder of this name is not part of the user's data."""
  return name.startswith(".") or name in SYSTEM_FOLDERS


def class_order(names: Iterable[str]) -> list[str]:
  """Class names in the order of their labels: as integers if all are, else as text."""
  names = sorted(names)
  if all(INTEGER.fullmatch(name) for name in names):
    names.sort(key=int)
  return names


class _Folder(NamedTuple):
  """What one directory holds, without what begins with a dot."""

  state: str
  contents: str
  below: list[str]
  files: list[str]  # and links, wherever they lead
  odd: list[str]  # pipes, sockets and devices
  system: list[str]  # SYSTEM_FOLDERS
  dangling: list[str]  # those of the files that are links and lead nowhere


def _passed_over(folder: _Folder) -> Counter:
  """What a folder holds beside images and folders, by kind."""
  found = Counter(map(_named, folder.system))
  found["neither file nor folder"] = len(folder.odd)
  others = (file for file in folder.files if not _is_image(file))
  found.update(Path(file).suffix.lower() or "without an extension" for file in others)
  return found


def _named(system_folder: str) -> str:
  return f"folders named {system_folder}"


def _is_image(file: str) -> bool:
  return file.lower().endswith(EXTENSIONS)


def _read(folder: Path) -> _Folder:
  """Lists a directory.

  Its times are read before its names: a file added in between changes them once more.

  Raises:
    UserError: if it cannot be read.
  """
  below, files, odd, system, dangling = [], [], [], [], []
  try:
    status = folder.stat()
    with os.scandir(folder) as entries:
      for entry in entries:
        if entry.name.startswith("."):
          continue
        if _leads_to(entry, os.DirEntry.is_dir):
          (system if entry.name in SYSTEM_FOLDERS else below).append(entry.name)
        elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
          files.append(entry.name)
          if not _leads_to(entry, os.DirEntry.is_file):
            dangling.append(entry.name)
        else:
          odd.append(entry.name)
  except OSError as error:
    raise UserError(f"directory {folder} cannot be read: {error.strerror}") from error
  contents = _digest([*sorted(below), "/", *sorted(files), "/", *sorted(odd), "/", *sorted(system)])
  return _Folder(state(status), contents, below, files, odd, system, dangling)


def _walk(folder: Path, root: Path) -> Iterator[tuple[str, _Folder]]:
  """Every directory from here down, through links as well.

  Raises:
    UserError: if one cannot be read, or is a link to a folder that holds it, or links lead to
      the same folders more than MAX_REPEATS times: a few that each hold two links to the next
      have millions of paths.
  """
  seen, repeats = set(), 0
  top = os.path.realpath(root)
  pending = [(folder, f"{top}/{folder.name}", frozenset([top]))]
  while pending:
    path, real, above = pending.pop()
    real = os.path.realpath(real)
    if real in above:
      raise UserError(f"{path} is a link to {real}, which holds it; remove the link")
    repeats += real in seen
    seen.add(real)
    if repeats > MAX_REPEATS:
      raise UserError(
        f"{folder} holds links that lead to the same folders more than {MAX_REPEATS} times, such "
        f"as {real}; remove them"
      )
    found = _read(path)
    yield str(path), found
    pending += ((path / name, f"{real}/{name}", above | {real}) for name in found.below)


def _leads_to(entry: os.DirEntry, kind: Callable[[os.DirEntry], bool]) -> bool:
  try:
    return kind(entry)
  except OSError:  # a link in a circle, which reading will report as a file
    return False


def _digest(names: Iterable[str]) -> str:
  """No name holds a NUL."""
  return hashlib.blake2b(b"\0".join(map(os.fsencode, names)), digest_size=16).hexdigest()


def _encode(names: list[str]) -> np.ndarray:
  """Names as bytes of equal length: one object instead of a million, and quick to pickle."""
  return np.array([os.fsencode(name) for name in names], np.bytes_)
