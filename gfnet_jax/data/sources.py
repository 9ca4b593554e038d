"""Random-access sources of encoded images: `source[i] -> Record`.

A new kind of source is one class with __len__, __getitem__ and class_names, and one
line in `open_source`.
"""

import functools

import ml_collections

from gfnet_jax.data.folder import FolderSource
from gfnet_jax.data.records import Source
from gfnet_jax.data.tfds_source import TfdsSource
from gfnet_jax.data.tfrecord import TfrecordFiles
from gfnet_jax.errors import UserError


def open_source(data: ml_collections.ConfigDict, split: str) -> Source:
  """Opens a split of the data set that the `data` section of a config describes.

  Args:
    data: source is 'tfds' (the default; ArrayRecord), 'tfrecord' (TFDS in TFRecord) or
      'folder'; name is that of a TFDS data set, the directory that holds one or, for
      'folder', the directory of the splits; data_dir is for TFDS names; verify_crc (off
      by default) has 'tfrecord' check the sum of every record that is read.
    split: name of the split, for 'folder' a directory below name or ''.

  Raises:
    UserError: if it cannot be opened or is empty.
  """
  kind = data.get("source", "tfds")
  if not data.name:
    raise UserError(
      "data.name is empty, expected a TFDS data set or a directory; set it, for instance by "
      "--config.data.name=DIR"
    )
  if kind == "tfds":
    source = TfdsSource(data.name, split, data.data_dir)
  elif kind == "tfrecord":
    open_records = functools.partial(TfrecordFiles, verify_crc=data.get("verify_crc", False))
    source = TfdsSource(
      data.name, split, data.data_dir, file_format="tfrecord", open_records=open_records
    )
  elif kind == "folder":
    source = FolderSource(data.name, split)
  else:
    raise UserError(f"data.source is {kind!r}, expected tfds, tfrecord or folder")
  if len(source) == 0:
    raise UserError(
      f"split {split!r} of {data.name} is empty or no valid slice, expected at least one image"
    )
  return source


def check_same_classes(class_names: list[str], expected: list[str], split: str) -> None:
  """Raises UserError if the classes of a split have other names, or another order, than expected.

  Labels are places among the sorted names: with one class more, all after it shift.
  """
  if class_names == expected:
    return
  odd = sorted(set(class_names) ^ set(expected))
  what = f"{odd[0]!r} is a class of only one of them" if odd else "their order differs"
  raise UserError(
    f"the classes of {split} are not those of the training data ({what}); give both the same "
    "folders"
  )


def check_classes(source: Source, num_classes: int) -> None:
  """Raises UserError unless the source has as many classes as the model."""
  if len(source.class_names) != num_classes:
    raise UserError(
      f"the data set has {len(source.class_names)} classes, the model has {num_classes} "
      "(model.num_classes); choose another data set or another model"
    )
