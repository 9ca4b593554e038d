"""One's own images in a folder per class, of which a part is held out if none is set apart."""

import os
from pathlib import Path

import ml_collections
import numpy as np

from gfnet_jax.console import say
from gfnet_jax.data.sources.contents import read_contents
from gfnet_jax.data.sources.folder import FolderSource
from gfnet_jax.data.sources.holdout import SHARE, hold_out
from gfnet_jax.data.sources.listing import holds_images, is_left_out
from gfnet_jax.data.sources.records import Record, Source, required_name
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

VALIDATION = ("val", "valid", "validation", "test")  # the first that is there beside train
SPLITS = ("train", "val")
SHOWN = 5  # files or classes in a message


class Selected:
  """Some of the images of a folder.

  Args:
    source: all of them.
    indices: (images,), of those to keep.
  """

  def __init__(self, source: FolderSource, indices: np.ndarray):
    self._source, self._indices, self.class_names = source, indices, source.class_names

  def __len__(self) -> int:
    return len(self._indices)

  def record_names(self) -> list[bytes]:
    """The paths of the images; see `fingerprint`."""
    names = self._source.record_names()
    return [names[i] for i in self._indices]

  def __getitem__(self, index: int) -> Record:
    return self._source[int(self._indices[index])]


def open_photos(data: ml_collections.ConfigDict, split: str) -> Source:
  """The source 'photos': image files in `data.name`/CLASS/.

  Where `data.name` has folders train and val (or valid, validation, test) that hold the folders
  of the classes, these are the splits. Otherwise `hold_out` chooses the validation images, of
  train if it alone is there. What is held out, and what is left out because it cannot be read or
  lies beside train and val, is reported when the split val is opened.

  Args:
    data: section of a config; uses name, in which ~ stands for the home directory.
    split: train or val.

  Raises:
    UserError: for another split, or a directory that is not as above.
  """
  if split not in SPLITS:
    raise UserError(f"the split is {split!r}, expected {' or '.join(SPLITS)}")
  directory = Path(os.path.expanduser(required_name(data)))  # noqa: PTH111 (without a home, too)
  _check_folder(directory)
  root, validation = directory, None
  if _folders(directory / "train"):
    validation = next((name for name in VALIDATION if _folders(directory / name)), None)
    others = [name for name in _folders(directory) if name not in ("train", validation)]
    if not validation:
      _check_train_is_alone(directory, others)
    elif others and split == "val":
      say(f"{directory}: train and {validation} are read; not {_listed(others)}")
    root = directory if validation else directory / "train"
  if validation:
    source = FolderSource(str(root), "train" if split == "train" else validation)
    _check_classes(source, root)
    return source
  source = FolderSource(str(root), "", quiet=split == "val")
  _check_classes(source, root)
  return select(source, root, split)


def select(source: FolderSource, root: Path, split: str, share: float = SHARE) -> Selected:
  """The images of a split, where none is set apart; lines are printed when the split is val.

  Args:
    source: all images.
    root: their directory.
    split: train or val.
    share: of every class that is held out.

  Raises:
    UserError: if a class has no image that can be read, or nothing can be held out.
  """
  names, labels = source.record_names(), source.labels
  contents = read_contents(root, names)
  good = np.array([i for i, content in enumerate(contents) if not content.problem], int)
  digests = [content.digest for content in contents]
  counts = np.bincount(labels[good], minlength=len(source.class_names))
  if not counts.all():
    empty = printable(source.class_names[counts.argmin()])
    raise UserError(
      f"{root / empty} holds no image that can be read, expected some; fill or remove it"
    )
  held_out = hold_out(labels[good].tolist(), [digests[i] for i in good], share)
  if not held_out.any():
    raise UserError(
      f"{root} has no class of two different images, expected at least two of every class, one to "
      "train on and one for validation; add some"
    )
  if split == "val":
    for i, content in enumerate(contents):
      if content.problem:
        say(f"warning: {printable(source.path(i), 400)} is left out: {content.problem}")
    for line in _describe(source, root, good, held_out, digests):
      say(line)
  return Selected(source, good[held_out if split == "val" else ~held_out])


def _describe(
  source: FolderSource, root: Path, good: np.ndarray, held_out: np.ndarray, digests: list[str]
) -> list[str]:
  """Lines about a division: one, and a warning for classes and images that are odd."""
  labels, classes = source.labels[good], source.class_names
  lines = [
    f"{root}: {len(good)} images in {len(classes)} classes; {held_out.sum()} of them are held out "
    "for validation, chosen by their content and the same in every run"
  ]
  seen, several = {}, set()
  for i in good:
    if seen.setdefault(digests[i], source.labels[i]) != source.labels[i]:
      several.add(digests[i])
  missing = sorted(set(range(len(classes))) - set(labels[held_out].tolist()))
  if missing:
    counted = ", not counting those in several classes" if several else ""
    lines.append(
      f"warning: no two different images in {_listed([classes[label] for label in missing])}"
      f"{counted}: trained on, but not evaluated; add images"
    )
  if several:
    shown = [source.record_names()[i].decode(errors="replace") for i in good]
    shown = [name for name, i in zip(shown, good, strict=True) if digests[i] in several]
    lines.append(
      f"warning: the same image stands in several classes ({_listed(shown)}): trained on, but not "
      "evaluated; keep one of each"
    )
  return lines


def _listed(names: list[str]) -> str:
  more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
  return ", ".join(printable(name, 60) for name in names[:SHOWN]) + more


def _check_folder(directory: Path) -> None:
  wanted = "a directory with a folder of images for each class"
  if os.path.isfile(directory):  # noqa: PTH113 (False for a name too long as well)
    raise UserError(f"{directory} is a file, expected {wanted}; set data.name to one")
  if not os.path.isdir(directory):  # noqa: PTH112
    raise UserError(f"directory {directory} not found, expected {wanted}; set data.name to one")
  if not _folders(directory):
    files = sum(not is_left_out(path.name) for path in directory.iterdir())
    found = f"holds {files} files and no folders" if files else "is empty"
    raise UserError(
      f"{directory} {found}, expected a folder for each class, such as {directory / 'cats'} and "
      f"{directory / 'dogs'}; sort the images into such folders"
    )


def _check_train_is_alone(directory: Path, others: list[str]) -> None:
  """Refuses images that would be left out without a word: train may be one class of several."""
  if others := [name for name in others if holds_images(directory / name)]:
    raise UserError(
      f"{directory} holds images in {_listed(others)} beside train, which has folders of its own; "
      f"expected train alone or beside {', '.join(VALIDATION[:-1])} or {VALIDATION[-1]}, each with "
      "a folder for each class; rename train if it is a class, or what holds the validation images"
    )


def _check_classes(source: FolderSource, root: Path) -> None:
  if len(source.class_names) < 2:
    raise UserError(
      f"{root} holds one class, {printable(source.class_names[0])}, expected at least two; add a "
      "folder of images for each class"
    )


def _folders(directory: Path) -> list[str]:
  """The names of the folders in a directory."""
  try:
    found = [path.name for path in directory.iterdir() if path.is_dir()]
  except OSError:  # it is not there, no directory, or cannot be read: which listing will say
    return []
  return sorted(name for name in found if not is_left_out(name))
