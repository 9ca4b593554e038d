"""The splits that are to be prepared: where they are, their classes and their images."""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from gfnet_jax.data.prepare.archives import (
  TRAIN_TAR,
  VALIDATION_TAR,
  Entry,
  imagenet_classes,
  list_folder,
  list_train_tar,
  list_validation_tar,
)
from gfnet_jax.data.sources import digits  # noqa: F401 (a name that TFDS knows from here on)
from gfnet_jax.data.sources.listing import is_left_out
from gfnet_jax.data.sources.tfds_info import INFO, split_names
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

IMAGENET = "imagenet2012"
IMAGENET_IMAGES = {"train": 1_281_167, "validation": 50_000}
TARS: dict[str, tuple[str, Callable[[Path], list[Entry]]]] = {
  "train": (TRAIN_TAR, list_train_tar),
  "validation": (VALIDATION_TAR, list_validation_tar),
}
SPLIT = re.compile(r"(?!all$)\w+", re.ASCII)  # `all` is TFDS's name for all of them


class Registered(NamedTuple):
  """A data set that TFDS knows by name, and opens only like this.

  Attributes:
    version: the one it looks for.
    classes: in the order of its labels.
  """

  version: str
  classes: list[str]


def find_registered(name: str) -> Registered | None:
  """What TFDS itself says of a data set; None if it does not know the name.

  Raises:
    UserError: if it is a data set of something else than images with one label.
  """
  advice = "choose another --name"
  try:
    builder = tfds.builder(name, data_dir="/dev/null")  # its code, whatever is prepared
    features = dict(builder.info.features)
  except tfds.core.DatasetNotFoundError:
    return None
  except Exception as error:  # a data set's own code, which may need other libraries
    raise UserError(
      f"--name {name} is a data set of TFDS that cannot be opened ({printable(error)}); {advice}"
    ) from error
  label = features.get("label")
  if builder.builder_config or not isinstance(label, tfds.features.ClassLabel):
    raise UserError(
      f"--name {name} is a data set of TFDS in several versions or without a label; {advice}"
    )
  return Registered(str(builder.version), list(label.names))


def find_splits(source: Path) -> dict[str, Path]:
  """The archives of ImageNet in a directory by their splits, or else its folders.

  The folder `val` is the split `validation`; hidden folders are left out.

  Raises:
    UserError: if there are none, or a folder's name cannot be that of a split.
  """
  try:
    tars = {split: source / name for split, (name, _) in TARS.items()}
    if found := {split: path for split, path in tars.items() if path.is_file()}:
      return found
    folders = sorted(
      path for path in source.iterdir() if not is_left_out(path.name) and path.is_dir()
    )
  except OSError as error:
    raise UserError(f"directory {source} cannot be read: {error.strerror}") from error
  if not folders:
    raise UserError(f"{source} holds neither folders nor {TRAIN_TAR}")
  splits = {}
  for folder in folders:
    split = "validation" if folder.name == "val" else folder.name
    if split in splits:
      raise UserError(f"{source} holds both val and validation, expected one; remove the other")
    if not SPLIT.fullmatch(split):
      raise UserError(
        f"{source} holds a folder {printable(split)!r}, expected splits named by letters, digits "
        "and _, such as train and val; rename it"
      )
    splits[split] = folder
  return splits


def check_not_complete(directory: Path, splits: Collection[str]) -> None:
  """Raises UserError if a directory holds a data set that is ready to be opened."""
  if (directory / INFO).is_file():
    missing = sorted(set(splits) - set(split_names(directory)))
    without = f", but without {', '.join(missing)}" if missing else ""
    raise UserError(f"{directory} is complete{without}; remove it to prepare it again")


def list_splits(
  paths: dict[str, Path], classes: list[str] | None
) -> tuple[list[str], dict[str, list[Entry]]]:
  """The classes, and the images of each split.

  Args:
    paths: as from `find_splits`.
    classes: in the order of the labels; None for those of `train`, or of the first split.

  Raises:
    UserError: if an archive is damaged, or a folder holds something else.
  """
  splits = {}
  # `train` before the others: its folders are the classes.
  for split in sorted(paths, key=lambda split: split != "train"):
    if paths[split].is_file():
      classes, splits[split] = imagenet_classes(), TARS[split][1](paths[split])
    else:
      classes, splits[split] = list_folder(paths[split], classes)
  return classes, splits


def is_imagenet(name: str, paths: dict[str, Path]) -> bool:
  """Whether a data set is meant to be all of ImageNet: by its name, or as the original archives.

  Others have its classes as well: parts of it, and collections of other images.
  """
  return name == IMAGENET or any(path.is_file() for path in paths.values())


def check_imagenet(source: Path, splits: dict[str, list[Entry]]) -> None:
  """Makes sure that splits hold all of ImageNet's images.

  Raises:
    UserError: if one is missing, or holds another number of images or classes.
  """
  for split, expected in IMAGENET_IMAGES.items():
    entries = splits.get(split, [])
    images, classes = len(entries), len({entry.label for entry in entries})
    if (images, classes) != (expected, len(imagenet_classes())):
      raise UserError(
        f"{source} holds {images} images of {classes} classes for the split {split}, expected "
        f"ImageNet's {expected} of 1000; get {TARS[split][0]} or its folder again, or give folders "
        "of another data set another --name"
      )
