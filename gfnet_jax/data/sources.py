"""Random-access sources of encoded images: `source[i] -> Record`.

A new kind of source is one class with __len__, __getitem__ and class_names, and one
line in `open_source`.
"""

import contextlib
import io
from pathlib import Path
from typing import NamedTuple, Protocol

import ml_collections
import tensorflow_datasets as tfds

from gfnet_jax.data import digits
from gfnet_jax.errors import UserError


class Record(NamedTuple):
  """One stored image: the bytes of its file, its class and what to call it in messages."""

  image: bytes
  label: int
  name: str


class Source(Protocol):
  """A split of a data set, indexed at random."""

  class_names: list[str]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...


class TfdsSource:
  """A split of a TFDS image-label data set stored as ArrayRecord.

  Args:
    name: registered name ("digits", "imagenet2012") or the directory that holds
      dataset_info.json.
    split: name of a split, or a slice of one such as "train[:90%]".
    data_dir: where TFDS keeps its data sets; empty for its default, which is the
      environment variable TFDS_DATA_DIR or ~/tensorflow_datasets.

  Raises:
    UserError: if the data set, the split, or its image and label are not found.
  """

  def __init__(self, name: str, split: str, data_dir: str = ""):
    builder = _open_builder(name, data_dir)
    try:
      self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
      raise UserError(
        f"{builder.data_path} is stored as {builder.info.file_format.value}, expected array_record"
      ) from error
    except (ValueError, KeyError) as error:
      if split.partition("[")[0] in builder.info.splits:
        raise UserError(f"split {split!r} of {name} is empty or no valid slice") from error
      raise UserError(
        f"split {split!r} of {name} not found in {builder.data_path}, "
        f"expected one of {', '.join(builder.info.splits)}"
      ) from error
    features = dict(builder.info.features)
    if "image" not in features or not isinstance(features.get("label"), tfds.features.ClassLabel):
      raise UserError(f"{name} has the features {', '.join(features)}; expected image and label")
    self.class_names = list(features["label"].names)
    self._name = f"{name} {split}"

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Record:
    record = self._records[index]
    return Record(record["image"], int(record["label"]), f"{self._name}[{index}]")


def open_source(data: ml_collections.ConfigDict, split: str) -> Source:
  """Opens a split of the data set that the `data` section of a config describes.

  Raises:
    UserError: if it cannot be opened or is empty.
  """
  source = TfdsSource(data.name, split, data.data_dir)
  if len(source) == 0:
    raise UserError(f"split {split!r} of {data.name} is empty, expected at least one image")
  return source


def check_classes(source: Source, num_classes: int) -> None:
  """Raises UserError unless the source has as many classes as the model."""
  if len(source.class_names) != num_classes:
    raise UserError(
      f"the data set has {len(source.class_names)} classes, the model has {num_classes} "
      "(model.num_classes); choose another data set or another model"
    )


def _open_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
  if (Path(name) / "dataset_info.json").is_file():
    return tfds.builder_from_directory(name)
  try:
    builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
  except tfds.core.DatasetNotFoundError as error:
    raise UserError(
      f"data set {name!r} not found; expected a TFDS name or a directory with dataset_info.json"
    ) from error
  if not builder.is_prepared() and isinstance(builder, digits.Digits):
    _prepare(builder)
  if not builder.is_prepared():
    raise UserError(
      f"data set {name!r} is not prepared in {builder.data_path}; prepare it there or set data_dir"
    )
  return builder


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
  """Writes a data set that needs no download; several processes may try at once."""
  print(f"Preparing the data set {builder.name} in {builder.data_path}")
  tfds.disable_progress_bar()  # it takes less than a second
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
  except OSError as error:
    if not builder.is_prepared():  # else another process was first
      raise UserError(
        f"cannot write the data set to {builder.data_path} ({error.strerror}); set data_dir"
      ) from error
