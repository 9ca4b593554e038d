"""Random access to TFRecord files.

A file is a sequence of records: the length as a little-endian uint64, its checksum, the
data, its checksum. Checksums are "masked" CRC-32C, little-endian uint32.
(https://www.tensorflow.org/tutorials/load_data/tfrecord, section "TFRecords format details")
"""

import bisect
import itertools
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
from tqdm import tqdm

from gfnet_jax.data.sources.cache import load_arrays, store_arrays
from gfnet_jax.data.sources.records import BadRecordError
from gfnet_jax.errors import UserError

HEADER = struct.Struct("<QI")  # length, checksum of the length
FOOTER = struct.Struct("<I")  # checksum of the data
FRAME = HEADER.size + FOOTER.size  # bytes of a record around its data
INDEXING_THREADS = 16  # indexing waits for the disk


class TfrecordFiles:
  """The records of several files as one sequence of bytes objects.

  The positions of a file's records are found once and cached, for as long as its size and
  modification time stay the same.

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
      starts = threads.map(_cached_starts, paths)
      starts = list(tqdm(starts, "index TFRecords", len(paths), delay=2, unit="file"))
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
      data = os.pread(opened.fileno(), end - start - HEADER.size, start + HEADER.size)
    if len(data) != end - start - HEADER.size:
      raise BadRecordError(f"{self._paths[file]} ends at record {index}; it has changed")
    data, checksum = data[: -FOOTER.size], FOOTER.unpack(data[-FOOTER.size :])[0]
    if self._verify_crc and masked_crc(data) != checksum:
      raise BadRecordError(f"{self._paths[file]} is damaged at byte {start}: wrong checksum")
    return data


def check_count(path: str, found: int, expected: int) -> None:
  """Raises UserError unless a file holds as many records as dataset_info.json says."""
  if found != expected:
    raise UserError(
      f"{path} holds {found} records, its dataset_info.json says {expected}; "
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
        length, checksum = HEADER.unpack(header)
        if masked_crc(header[:8]) != checksum:
          raise UserError(
            f"{path} is damaged or no TFRecord file (byte {starts[-1]}); copy it again"
          )
        starts.append(starts[-1] + FRAME + length)
  except OSError as error:
    raise UserError(f"cannot read {path} ({error.strerror}); copy the data set again") from error
  if starts[-1] != size:
    raise UserError(f"{path} is cut off after {size} bytes; copy it again")
  return np.array(starts, np.int64)


def _cached_starts(path: Path) -> np.ndarray:
  try:
    status = path.stat()
  except OSError as error:
    raise UserError(f"cannot read {path} ({error.strerror}); copy the data set again") from error
  stamp = np.array([status.st_size, status.st_mtime_ns], np.int64)
  cached = load_arrays("tfrecord", path)
  if cached is not None and np.array_equal(cached.get("stamp", ()), stamp):
    return cached["starts"]
  starts = index_records(path)
  store_arrays("tfrecord", path, dict(starts=starts, stamp=stamp))
  return starts
