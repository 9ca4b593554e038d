"""Writes a TFDS data set in ArrayRecord, image files unchanged; no TensorFlow.

Several processes write shards, each under a temporary name at first, with a summary of its
contents (a JSON file) beside it. A later run keeps the shards whose summary is the one
that it would write itself. At the end all shards are read and compared with their
summaries; dataset_info.json, without which TFDS sees no data set, is written last.
"""

import hashlib
import json
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2
from tqdm import tqdm

from gfnet_jax.data.child_processes import PARENTS_SIGNALS, blocked_signals, exit_with_parent
from gfnet_jax.data.prepare.archives import Entry
from gfnet_jax.errors import UserError
from gfnet_jax.files import make_directory, write_atomically
from gfnet_jax.text import printable

IMAGES_PER_SHARD = 2048  # 230 MB of ImageNet: the most work that a process loses if it is killed


class _Shard(NamedTuple):
  path: Path
  split: str
  entries: list[Entry]

  @property
  def summary_path(self) -> Path:
    return self.path.with_name(f".{self.path.name}.json")


class _Summary(NamedTuple):
  """What a shard holds.

  Attributes:
    entries: checksum of the list of entries from which it was written.
    images: their number.
    bytes: total size of the serialized examples.
    sha256: of the serialized examples.
  """

  entries: str
  images: int
  bytes: int
  sha256: str


def prepare(
  directory: Path,
  name: str,
  version: str,
  classes: list[str],
  splits: dict[str, list[Entry]],
  *,
  processes: int,
  images_per_shard: int = IMAGES_PER_SHARD,
) -> None:
  """Writes a data set, or those of its shards that are missing, and verifies it.

  Args:
    directory: where to write.
    name: of the data set.
    version: of the data set, such as "1.0.0".
    classes: their names, in the order of the labels.
    splits: the images of each split.
    processes: number of processes that read and write.
    images_per_shard: at most.

  Raises:
    UserError: if a file cannot be read or written, or what was written is damaged.
  """
  make_directory(directory)
  shards = [
    shard
    for split, entries in splits.items()
    for shard in _shards(directory, name, split, entries, images_per_shard)
  ]
  missing = [shard for shard in shards if not _is_written(shard)]
  if len(missing) < len(shards):
    print(f"Resuming: {len(shards) - len(missing)} of {len(shards)} shards are written already")
  _in_parallel(_write, missing, processes, "write")
  _in_parallel(_verify, shards, processes, "verify")
  _write_metadata(directory, name, version, classes, shards)
  for shard in shards:
    shard.summary_path.unlink()


def _shards(
  directory: Path, name: str, split: str, entries: list[Entry], size: int
) -> Iterator[_Shard]:
  count = -(-len(entries) // size)
  for i in range(count):
    path = directory / f"{name}-{split}.array_record-{i:05d}-of-{count:05d}"
    yield _Shard(path, split, entries[len(entries) * i // count : len(entries) * (i + 1) // count])


def _write(shard: _Shard) -> None:
  temporary = shard.path.with_name(f".{shard.path.name}.tmp")
  try:
    # Group size 1: one image per read. Images are compressed already.
    writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    summary = _summarize(shard, map(_example, shard.entries), write=writer.write)
    writer.close()
    temporary.replace(shard.path)
    write_atomically(shard.summary_path, json.dumps(summary._asdict()))
  except (OSError, RuntimeError) as error:  # RuntimeError: ArrayRecord's, of a full disk
    temporary.unlink(missing_ok=True)
    if isinstance(error, OSError):
      reason = f"{printable(error.filename or shard.path)}: {error.strerror}"
    else:
      reason = f"cannot write {shard.path} ({printable(error)})"
    raise UserError(f"{reason}; fix that and run again") from error


def _verify(shard: _Shard) -> None:
  try:
    reader = ArrayRecordReader(str(shard.path))
    found = _summarize(shard, (reader.read() for _ in range(reader.num_records())))
    reader.close()
  except (RuntimeError, ValueError, IndexError) as error:
    found = error
  if found != _read_summary(shard):
    shard.summary_path.unlink()
    raise UserError(
      f"{shard.path} does not read back as it was written; check the disk and run again"
    )


def _summarize(
  shard: _Shard, examples: Iterable[bytes], write: Callable[[bytes], None] = lambda example: None
) -> _Summary:
  """Passes serialized examples to `write`, one by one, and summarizes them."""
  images, size, checksum = 0, 0, hashlib.sha256()
  for example in examples:
    write(example)
    checksum.update(example)
    images, size = images + 1, size + len(example)
  return _Summary(_checksum(shard.entries), images, size, checksum.hexdigest())


def _example(entry: Entry) -> bytes:
  """A serialized tf.train.Example with the features of TFDS's imagenet2012."""
  features = {
    "file_name": tf_feature_pb2.Feature(
      bytes_list=tf_feature_pb2.BytesList(value=[entry.name.encode(errors="surrogateescape")])
    ),
    "image": tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[entry.read()])),
    "label": tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[entry.label])),
  }
  example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=features))
  return example.SerializeToString(deterministic=True)


def _is_written(shard: _Shard) -> bool:
  summary = _read_summary(shard)
  return (
    shard.path.is_file() and summary is not None and summary.entries == _checksum(shard.entries)
  )


def _read_summary(shard: _Shard) -> _Summary | None:
  try:
    return _Summary(**json.loads(shard.summary_path.read_text()))
  except (OSError, ValueError, TypeError):
    return None


def _checksum(entries: list[Entry]) -> str:
  return hashlib.sha256(repr([tuple(entry) for entry in entries]).encode()).hexdigest()


def _in_parallel(work: Callable, shards: list[_Shard], processes: int, name: str) -> None:
  """Calls work(shard) for all shards, each in one of several processes.

  No process has a second shard to do when it is at one: after an error or Ctrl-C, those that
  are in hand are finished, and no other is begun.
  """
  context = multiprocessing.get_context("spawn")
  pool = ProcessPoolExecutor(processes, context, initializer=_init_process)
  total, waiting, begun = sum(len(shard.entries) for shard in shards), shards[::-1], {}
  try:
    with tqdm(total=total, desc=name, unit="img", smoothing=0.05) as bar:
      while waiting or begun:
        while waiting and len(begun) < processes:
          shard = waiting.pop()
          with blocked_signals():  # by the processes, until they ignore them
            begun[pool.submit(work, shard)] = shard
        for future in wait(begun, return_when=FIRST_COMPLETED).done:
          future.result()
          bar.update(len(begun.pop(future).entries))
  except BrokenProcessPool as error:
    raise UserError("a process was killed (out of memory?); run again to resume") from error
  except KeyboardInterrupt:
    print("finishing the shards in hand", file=sys.stderr, flush=True)
    raise
  finally:
    # Not by `with`, which would wait for all that was submitted.
    pool.shutdown(cancel_futures=True)


def _init_process() -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
  signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS_SIGNALS)
  exit_with_parent()


def _write_metadata(
  directory: Path, name: str, version: str, classes: list[str], shards: list[_Shard]
) -> None:
  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(encoding_format="jpeg"),
      "label": tfds.features.ClassLabel(names=classes),
      "file_name": tfds.features.Text(),
    }
  )
  template = tfds.core.ShardedFileTemplate(
    data_dir=directory, dataset_name=name, filetype_suffix="array_record"
  )
  summaries = [(shard.split, _read_summary(shard)) for shard in shards]
  infos = []
  for split in dict.fromkeys(shard.split for shard in shards):
    own = [summary for other, summary in summaries if other == split]
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[summary.images for summary in own],
        num_bytes=sum(summary.bytes for summary in own),
        filename_template=template.replace(split=split),
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=str(directory),
    features=features,
    version=version,
    split_infos=infos,
    filename_template=template,
    check_data=False,
  )
