"""The kind of a data set of which only the name is given."""

import os
from pathlib import Path
from typing import NamedTuple

from gfnet_jax.data.sources.imagenet_sets import IMAGENET_SETS
from gfnet_jax.data.sources.open import DEFAULT
from gfnet_jax.data.sources.tfds_info import INFO, KINDS, file_format, prepared_versions
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

# The kinds that can be told apart, and those in whose place they are read.
BUILT_IN = ("tfds", "tfrecord", "folder", "photos", "imagenet_set", "domains")
MASKED = ("masks", "shapes")  # among themselves: their networks read nothing else


class Recognised(NamedTuple):
  """What a data set's name alone tells about it.

  Attributes:
    source: its kind, a name in SOURCES.
    split: the split to evaluate on; None if the name does not tell.
  """

  source: str
  split: str | None = None


def recognise(name: str, usual: str = DEFAULT, data_dir: str = "") -> Recognised:
  """Guesses the kind of a data set of which only the name is given.

  A name in IMAGENET_SETS stands for that set, as TFDS or as a folder in `data_dir`. A TFDS
  data set is of the kind in which its files are stored. Any other directory is a folder of
  images; its split is the directory `val` if there is one, else the directory itself. A name
  of which nothing is found is of the usual kind, or of TFDS if that is of folders. Where images
  with masks are usual, the name shapes stands for the generated ones, and any other is a directory
  of masks. A usual kind of one's own always stays.

  Args:
    name: of a data set, or a directory.
    usual: the kind of the data set in whose place this one is read.
    data_dir: directory of all TFDS data sets; empty for TFDS's default.

  Raises:
    UserError: for a directory that holds versions of a TFDS data set.
  """
  if usual in MASKED:
    return _recognise_masked(name, usual)
  if usual not in BUILT_IN:
    return Recognised(usual)
  if name in IMAGENET_SETS:
    return Recognised("imagenet_set", IMAGENET_SETS[name].split)
  directory = Path(name)
  if os.path.isdir(directory):  # noqa: PTH112 (False for a name too long as well)
    if not (directory / INFO).is_file():
      return _recognise_folder(directory)
    prepared = [directory]
  else:
    prepared = prepared_versions(name, data_dir)
  kinds = {KINDS[found] for found in map(file_format, prepared) if found in KINDS}
  if len(kinds) == 1:
    return Recognised(*kinds)
  return Recognised(usual if usual in KINDS.values() else DEFAULT)


def _recognise_masked(name: str, usual: str) -> Recognised:
  if name == "shapes":
    return Recognised("shapes", "test")
  return Recognised("masks", None if usual == "masks" else "validation")


def _recognise_folder(directory: Path) -> Recognised:
  versions = sorted(info.parent for info in directory.glob(f"*/{INFO}"))
  if versions:
    raise UserError(
      f"{directory} holds versions of a TFDS data set, expected one of them; name "
      f"{printable(versions[-1])}"
    )
  return Recognised("folder", "val" if (directory / "val").is_dir() else "")
