"""Random access to TFRecord files.

A file is a sequence of records: the length as a little-endian uint64, its checksum, the
data, its checksum. Checksums are "masked" CRC-32C, little-endian uint32.
(https://www.tensorflow.org/tutorials/load_data/tfrecord, section "TFRecords format details")
"""

import bisect
import itertools
import os
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
from tqdm import tqdm

from gfnet_jax.console import say
from gfnet_jax.data.sources.cache import Arrays, cache_file, load_arrays, store_arrays
from gfnet_jax.data.sources.file_times import state, tells
from gfnet_jax.data.sources.records import BadRecordError
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

HEADER = struct.Struct("<QI")  # length, checksum of the length
FOOTER = struct.Struct("<I")  # checksum of the data
FRAME = HEADER.size + FOOTER.size  # bytes of a record around its data
INDEXING_THREADS = 16  # indexing waits for the disk
SAMPLES = 8  # records of a file whose positions are verified when they come from the cache


class TfrecordFiles:
  """The records of several files as one sequence of bytes objects.

  The positions of a file's records are found once and cached, for as long as its size and
  times stay the same; a line says so. Those of some records are verified when the cache is
  read, and that of every record when it is.

  Args:
    instructions: TFDS's file instructions: filename, skip, take and examples_in_shard
      of every file.
    verify_crc: whether to check the checksum of all data read, which takes a few percent
      of the time of decoding.

  Raises:
    UserError: if a file is missing or damaged, or the number of its records is not the one
      in dataset_info.json.
  """

  def __init__(self, instructions: list, *, verify_crc: bool = False):
    paths = [Path(instruction.filename) for instruction in instructions]
    with ThreadPoolExecutor(INDEXING_THREADS) as threads:
      indices = threads.map(_index, paths)
      indices = list(tqdm(indices, "index TFRecords", len(paths), delay=2, unit="file"))
    if cached := [path for path, index in zip(paths, indices, strict=True) if index.cached]:
      say(
        f"{len(cached)} of {len(paths)} TFRecord files are unchanged, so their indices come from "
        f"the cache, {cache_file('tfrecord', cached[0])}{' ...' if len(cached) > 1 else ''}"
      )
    starts = [index.starts for index in indices]
    for instruction, file_starts in zip(instructions, starts, strict=True):
      check_count(instruction.filename, len(file_starts) - 1, instruction.examples_in_shard)
    # One entry more than there are records: the end of the last one.
    self._starts = [
      file_starts[instruction.skip : instruction.skip + instruction.take + 1]
      for instruction, file_starts in zip(instructions, starts, strict=True)
    ]
    self._paths, self._verify_crc = paths, verify_crc
    self._ends = list(itertools.accumulate(len(starts) - 1 for starts in self._starts))

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> bytes:
    """The data of one record.

    Raises:
      BadRecordError: if it cannot be read, or verify_crc finds its checksum wrong.
    """
    file = bisect.bisect_right(self._ends, index)
    starts = self._starts[file]
    start, end = starts[index - self._ends[file] + len(starts) - 1 :][:2].tolist()
    # Opened for every record: a thousand files kept open would exceed the usual limit.
    with self._paths[file].open("rb", buffering=0) as opened:
      data = os.pread(opened.fileno(), end - start, start)
    if len(data) != end - start or _length(data) != end - start - FRAME:
      raise BadRecordError(f"{self._paths[file]} has changed since it was opened: record {index}")
    data, checksum = data[HEADER.size : -FOOTER.size], FOOTER.unpack(data[-FOOTER.size :])[0]
    if self._verify_crc and masked_crc(data) != checksum:
      raise BadRecordError(f"{self._paths[file]} is damaged at byte {start}: wrong checksum")
    return data


def check_count(path: str, found: int, expected: int) -> None:
  """Raises UserError unless a file holds as many records as dataset_info.json says."""
  if found != expected:
    raise UserError(
      f"{printable(path, 500)} holds {found} records, its dataset_info.json says {expected}; "
      "copy the data set again"
    )


def masked_crc(data: bytes) -> int:
  """The checksum of TFRecord: CRC-32C, rotated right by 15 bits, plus a constant."""
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def index_records(path: Path) -> np.ndarray:
  """Finds the records of a file by their lengths, and verifies the lengths' checksums.

  Returns:
    (records + 1,), int64: the byte offsets of the records, then the size of the file.

  Raises:
    UserError: if the file is missing, damaged or no TFRecord.
  """
  try:
    with path.open("rb", buffering=0) as file:
      size = os.fstat(file.fileno()).st_size
      starts = [0]
      while starts[-1] < size:
        header = os.pread(file.fileno(), HEADER.size, starts[-1])
        if len(header) < HEADER.size:
          break
        if (length := _length(header)) is None:
          raise UserError(
            f"{path} is damaged or no TFRecord file (byte {starts[-1]}); copy it again"
          )
        starts.append(starts[-1] + FRAME + length)
  except OSError as error:
    raise UserError(
      f"cannot read {printable(path, 500)} ({error.strerror}); copy the data set again"
    ) from error
  if starts[-1] != size:
    raise UserError(f"{path} is cut off after {size} bytes; copy it again")
  return np.array(starts, np.int64)


class _Index(NamedTuple):
  """Where the records of a file begin, as from `index_records`, and whether that was cached."""

  starts: np.ndarray
  cached: bool


def _index(path: Path) -> _Index:
  try:
    status = path.stat()
    cached = load_arrays("tfrecord", path)
    if cached is not None and tells(status, time.time_ns()) and _is_current(path, status, cached):
      return _Index(cached["starts"], cached=True)
  except OSError as error:
    raise UserError(
      f"cannot read {printable(path, 500)} ({error.strerror}); copy the data set again"
    ) from error
  starts = index_records(path)
  store_arrays("tfrecord", path, dict(starts=starts, state=np.array([state(status)], np.bytes_)))
  return _Index(starts, cached=False)


def _is_current(path: Path, status: os.stat_result, index: Arrays) -> bool:
  """Whether a cached index is of a file as it is, as its times and some of its records tell."""
  if index.keys() != {"starts", "state"} or index["state"].tolist() != [state(status).encode()]:
    return False
  starts = index["starts"]
  if len(starts) == 1:  # an empty file
    return True
  samples = np.unique(np.linspace(0, len(starts) - 2, SAMPLES).astype(int)).tolist()
  with path.open("rb", buffering=0) as file:
    headers = [os.pread(file.fileno(), HEADER.size, starts[i]) for i in samples]
  return [_length(header) for header in headers] == (np.diff(starts) - FRAME)[samples].tolist()


def _length(header: bytes) -> int | None:
  """The length of the data behind a header; None if it is not one."""
  if len(header) < HEADER.size:
    return None
  length, checksum = HEADER.unpack_from(header)
  return length if masked_crc(header[:8]) == checksum else None
