"""TFDS data sets of images with labels, stored as ArrayRecord or TFRecord; no TensorFlow.

The files hold serialized tf.train.Example protos in either format. Only the features
`image` and `label` are looked at, so a data set may have any others.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from gfnet_jax.data.sources import digits
from gfnet_jax.data.sources.records import BadRecordError, Record, required_name
from gfnet_jax.data.sources.tfrecord import TfrecordFiles
from gfnet_jax.errors import UserError

KINDS = {"array_record": "tfds", "tfrecord": "tfrecord"}  # formats by TFDS's name, kinds by ours


class TfdsSource:
  """A split of a TFDS image-label data set.

  Args:
    name: registered name ("digits", "imagenet2012"), or the directory that holds
      dataset_info.json.
    split: name of a split, or a slice of one such as "train[:90%]".
    data_dir: where TFDS keeps its data sets; empty for its default, which is the
      environment variable TFDS_DATA_DIR or ~/tensorflow_datasets.
    file_format: 'array_record' or 'tfrecord'.
    open_records: makes a sequence of serialized examples, with random access, from TFDS's
      file instructions (a list of file names with the records to take from each).

  Raises:
    UserError: if the data set, the split, its files, or its image and label are not found.
  """

  def __init__(
    self,
    name: str,
    split: str,
    data_dir: str = "",
    *,
    file_format: str = "array_record",
    open_records: Callable[[list], Sequence[bytes]] = ArrayRecordDataSource,
  ):
    builder = _open_builder(name, data_dir, file_format)
    features = dict(builder.info.features or {})
    if "image" not in features or not isinstance(features.get("label"), tfds.features.ClassLabel):
      raise UserError(f"{name} has the features {', '.join(features)}; expected image and label")
    instructions = _file_instructions(builder, name, split)
    # An empty split has no files, which ArrayRecordDataSource refuses.
    self._records = open_records(instructions) if instructions else ()
    self.class_names = list(features["label"].names)
    self._name = f"{name} {split}"
    self._shards = [(file.skip, file.take, file.examples_in_shard) for file in instructions]
    self._full_name = builder.info.full_name

  def __len__(self) -> int:
    return len(self._records)

  def record_names(self) -> list[bytes]:
    """Name and version of the data set, and what is taken of every shard; see `fingerprint`."""
    shards = (f"{skip}+{take} of {length}" for skip, take, length in self._shards)
    return [text.encode() for text in (self._full_name, *shards)]

  def __getitem__(self, index: int) -> Record:
    name = f"{self._name}[{index}]"
    try:
      # Parsed here, since TFDS's own parser goes through NumPy for every feature.
      example = tf_example_pb2.Example.FromString(self._records[index])
      features = example.features.feature
      (image,) = features["image"].bytes_list.value
      (label,) = features["label"].int64_list.value
    # ArrayRecord reports damage as RuntimeError or ValueError.
    except (DecodeError, OSError, RuntimeError, ValueError) as error:
      raise BadRecordError(f"{name} cannot be read: {error}") from error
    return Record(image, label, name)


def open_tfds(data: ml_collections.ConfigDict, split: str) -> TfdsSource:
  """The source 'tfds': a split of the data set `data.name`, stored as ArrayRecord."""
  return TfdsSource(required_name(data), split, data.get("data_dir", ""))


def open_tfrecord(data: ml_collections.ConfigDict, split: str) -> TfdsSource:
  """The source 'tfrecord': the same, stored as TFRecord."""
  return TfdsSource(
    required_name(data),
    split,
    data.get("data_dir", ""),
    file_format="tfrecord",
    open_records=functools.partial(TfrecordFiles, verify_crc=data.get("verify_crc", False)),
  )


def _open_builder(name: str, data_dir: str, file_format: str) -> tfds.core.DatasetBuilder:
  if (Path(name) / "dataset_info.json").is_file():
    builder = tfds.builder_from_directory(name)
  else:
    builder = _builder_by_name(name, data_dir, file_format)
  found = builder.info.file_format.value
  if found != file_format:
    kind = KINDS.get(found)
    advice = f"set data.source={kind}" if kind else "prepare it again with that format"
    raise UserError(f"{builder.data_path} is stored as {found}, expected {file_format}; {advice}")
  return builder


def _builder_by_name(name: str, data_dir: str, file_format: str) -> tfds.core.DatasetBuilder:
  try:
    builder = tfds.builder(name, data_dir=data_dir or None)
  except (tfds.core.DatasetNotFoundError, ValueError) as error:  # no such name, or no name
    raise UserError(
      f"data set {name!r} not found; expected a TFDS name, a directory with dataset_info.json, or "
      "a folder of images"
    ) from error
  if not builder.is_prepared() and file_format == "array_record":
    builder = tfds.builder(name, data_dir=data_dir or None, file_format=file_format)
    if isinstance(builder, digits.Digits):
      _prepare(builder)
  if not builder.is_prepared():
    raise UserError(
      f"data set {name!r} is not prepared in {builder.data_path}; prepare it there "
      "(docs/prepare_data.md) or set data_dir"
    )
  return builder


def _file_instructions(builder: tfds.core.DatasetBuilder, name: str, split: str) -> list:
  try:
    return builder.info.splits[split].file_instructions
  except (ValueError, KeyError) as error:
    if split.partition("[")[0] in builder.info.splits:
      raise UserError(f"split {split!r} of {name} is empty or no valid slice") from error
    raise UserError(
      f"split {split!r} of {name} not found in {builder.data_path}, "
      f"expected one of {', '.join(builder.info.splits)}"
    ) from error


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
  """Writes a data set that needs no download; several processes may do so at once."""
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
