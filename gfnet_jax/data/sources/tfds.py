"""TFDS data sets of images with labels, stored as ArrayRecord or TFRecord; no TensorFlow.

The files hold serialized tf.train.Example protos in either format. Only the features `image` and
those of `find_labels` are looked at, so a data set may have any others.
"""

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_collections
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from gfnet_jax.data.sources import digits
from gfnet_jax.data.sources.records import BadRecordError, Record, required_name
from gfnet_jax.data.sources.tfds_info import INFO, KINDS, NAME, check_info_files, prepared_versions
from gfnet_jax.data.sources.tfds_labels import find_labels
from gfnet_jax.data.sources.tfrecord import TfrecordFiles, check_count
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

OPENING_THREADS = 16  # opening waits for the disk


def open_array_records(instructions: list) -> Sequence[bytes]:
  """The records of ArrayRecord files as one sequence.

  Args:
    instructions: TFDS's file instructions: filename, skip, take and examples_in_shard of
      every file.

  Raises:
    UserError: if a file cannot be opened, or the number of its records is not the one in
      dataset_info.json.
  """
  with ThreadPoolExecutor(OPENING_THREADS) as threads:
    for _ in threads.map(_check_array_record, instructions):
      pass
  return ArrayRecordDataSource(instructions)


def _check_array_record(instruction) -> None:
  path = os.fspath(instruction.filename)
  try:
    reader = ArrayRecordReader(path)
    found = reader.num_records()
    reader.close()
  except (OSError, RuntimeError, ValueError) as error:
    raise UserError(
      f"{printable(path, 500)} cannot be read ({printable(error)}); copy the data set again"
    ) from error
  check_count(path, found, instruction.examples_in_shard)


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

  Attributes:
    class_names: in the order of the labels.
    label_sets: whether the records tell all classes that an image shows, as imagenet2012_real does.
  """

  def __init__(
    self,
    name: str,
    split: str,
    data_dir: str = "",
    *,
    file_format: str = "array_record",
    open_records: Callable[[list], Sequence[bytes]] = open_array_records,
  ):
    builder = _open_builder(name, data_dir, file_format)
    labels = find_labels(builder, name)
    instructions = _file_instructions(builder, name, split)
    # An empty split has no files, which ArrayRecordDataSource refuses.
    self._records = open_records(instructions) if instructions else ()
    self.class_names, self._labels = labels.class_names, labels
    self.label_sets = labels.all_shown is not None
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
      (label,) = features[self._labels.own].int64_list.value
      shown = features[self._labels.all_shown].int64_list.value if self.label_sets else ()
    # ArrayRecord reports damage as RuntimeError or ValueError.
    except (DecodeError, OSError, RuntimeError, ValueError) as error:
      raise BadRecordError(f"{name} cannot be read: {error}") from error
    return Record(image, label, name, tuple(shown))


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
  if os.path.isfile(os.path.join(name, INFO)):  # noqa: PTH113, PTH118 (False for odd names as well)
    check_info_files(Path(name))
    with _reading(name):
      builder = tfds.builder_from_directory(name)
  else:
    builder = _builder_by_name(name, data_dir, file_format)
  found = builder.info.file_format.value
  if found != file_format:
    kind = KINDS.get(found)
    advice = (
      f"give eval.py --source {kind}; in a config, set data.source={kind}"
      if kind
      else "prepare it again with that format"
    )
    raise UserError(f"{builder.data_path} is stored as {found}, expected {file_format}; {advice}")
  return builder


def _builder_by_name(name: str, data_dir: str, file_format: str) -> tfds.core.DatasetBuilder:
  with _reading(name):
    directories = _may_be_opened(name, data_dir)
  for directory in directories:
    check_info_files(directory)
  make = functools.partial(_make_builder, name, data_dir)
  builder = make()
  if not builder.is_prepared() and file_format == "array_record":
    builder = make(file_format=file_format)
    if isinstance(builder, digits.Digits):
      _prepare(builder)
  if not builder.is_prepared():
    raise UserError(
      f"data set {name!r} is not prepared in {builder.data_path}; prepare it there "
      "(docs/prepare_data.md) or set data_dir (eval.py: --data-dir)"
    )
  return builder


def _may_be_opened(name: str, data_dir: str) -> list[Path]:
  """The prepared directories of a data set among which is the one that TFDS will open."""
  stem, _, version = name.partition(":")
  found = prepared_versions(stem, data_dir)
  if version:
    return [path for path in found if tfds.core.Version(path.name).match(version)]
  dataset, _, config_name = stem.partition("/")
  newest = list({path.parent: path for path in found}.values())
  try:
    code = tfds.builder_cls(dataset) if newest else None
  except tfds.core.DatasetNotFoundError:
    code = None
  if code is None:
    return newest
  # It has code for this one, which wants its own versions, and its default config.
  configs = list(code.builder_configs.values()) if config_name else [code.default_builder_config]
  configs = [config for config in configs if config and config_name in ("", config.name)]
  places = {(config.name, str(config.version or code.VERSION)) for config in configs}
  if not config_name and not places:
    places = {(dataset, str(code.VERSION))}
  opened = [path for path in found if (path.parent.name, path.name) in places]
  return opened if config_name in ("", *code.builder_configs) else newest + opened


def _make_builder(name: str, data_dir: str, **options: str) -> tfds.core.DatasetBuilder:
  expected = "expected a TFDS name, a directory with dataset_info.json, or a folder of images"
  found = UserError(f"data set {printable(name)!r} not found; {expected}")
  stem, colon, version = name.partition(":")
  # "space:name" is another catalogue's, for which TFDS would ask the network.
  if not NAME.fullmatch(stem) or (colon and not version[:1].isdecimal()):
    raise found
  try:
    with _reading(name):
      return tfds.builder(name, data_dir=data_dir or None, **options)
  except tfds.core.DatasetNotFoundError as error:
    raise found from error


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
  """Turns what TFDS raises for anything but an unknown name into one line.

  Raises:
    UserError: for all of it.
  """
  try:
    yield
  except tfds.core.DatasetNotFoundError:
    raise
  # AssertionError, KeyError, ParseError, RecursionError, ...: what a broken file leads to.
  except Exception as error:
    raise UserError(
      f"data set {printable(name)!r} cannot be opened "
      f"({type(error).__name__}: {printable(error)}); "
      "name another one or prepare it again (docs/prepare_data.md)"
    ) from error


def _file_instructions(builder: tfds.core.DatasetBuilder, name: str, split: str) -> list:
  """TFDS's file instructions of a split; none for an empty one.

  Raises:
    UserError: if there is no such split, or it is not a valid slice.
  """
  splits = builder.info.splits
  invalid = f"split {printable(split)!r} of {name} is empty or not a valid slice"
  try:
    parts = (
      [] if split in splits else tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    )
    instructions = splits[split].file_instructions
  # ValueError, KeyError, OverflowError, RecursionError, ...: TFDS parses it in many steps.
  except Exception as error:
    if split.partition("[")[0] in splits or "+" in split:
      raise UserError(invalid) from error
    raise UserError(
      f"split {printable(split)!r} of {name} not found in {builder.data_path}, "
      f"expected one of {printable(', '.join(splits))}"
    ) from error
  for part in parts:  # of which TFDS takes the wrong records if they end before they begin
    first, last = part.from_ or 0, splits[part.splitname].num_examples
    if first > (last if part.to is None else part.to):
      raise UserError(invalid)
  return instructions


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
