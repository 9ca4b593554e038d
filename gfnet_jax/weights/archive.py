"""Verifies the zip archives that `torch.save` writes, down to the last byte.

PyTorch ignores the CRC-32 sums in its archives. The sums cover the content of the
entries. The bytes around it follow from names and sizes, so they are compared with what
PyTorch 1.6 and later, whose zip writer is miniz, would have written.
"""

import struct
import zipfile
from typing import BinaryIO

from gfnet_jax.text import printable
from gfnet_jax.weights.kinds import DamagedFileError, UnsuitableFileError, other_archive

STREAMED = 0x8  # flag: sum and sizes come after the content
DIRECTORY_LIMIT = 1 << 22  # bytes; a training checkpoint has some hundred thousand
END, END64, LOCATOR = 22, 56, 20  # bytes of the records at the end

Extents = dict[str, tuple[int, int]]


def verify_archive(file: BinaryIO) -> Extents:
  """Reads a whole archive and checks it against its sums and PyTorch's layout.

  Args:
    file: open for reading.

  Returns:
    Position and size in bytes of the content of every entry, by name.

  Raises:
    DamagedFileError: naming the first difference.
    UnsuitableFileError: for an archive that is plainly of another program.
  """
  names: list[str] = []
  try:
    _check_directory_size(file)
    with zipfile.ZipFile(file) as archive:
      entries = archive.infolist()
      names = archive.namelist()
      if len({_settings(entry) for entry in entries}) != 1 or len(set(names)) != len(names):
        raise zipfile.BadZipFile("its entries differ in their attributes, or repeat a name")
      file.seek(0)
      extents = {entry.filename: _verify_entry(file, entry) for entry in entries}
      _verify_directory(file, entries)
      # Now none is compressed, and none overlaps another: this reads the file once.
      if (damaged := archive.testzip()) is not None:
        raise zipfile.BadZipFile(f"the CRC-32 of {damaged} is wrong")
  except Exception as error:  # damage can show as any exception
    if kind := other_archive(names):
      raise UnsuitableFileError(str(kind)) from error
    raise DamagedFileError(f"its zip archive is damaged ({printable(error)})") from error
  if kind := other_archive(names):
    raise UnsuitableFileError(str(kind))
  return extents


def _check_directory_size(file: BinaryIO) -> None:
  """Bounds the directory before zipfile takes memory for it."""
  size = file.seek(0, 2)
  file.seek(max(0, size - END - LOCATOR - END64))
  tail = file.read().rjust(END + LOCATOR + END64)
  (directory,) = struct.unpack_from("<I", tail, len(tail) - 10)
  if not tail[-END:].startswith(b"PK\5\6"):
    raise zipfile.BadZipFile("its end is missing")
  if tail[-END - LOCATOR :].startswith(b"PK\6\7"):
    (directory,) = struct.unpack_from("<Q", tail, 40)
  if directory > DIRECTORY_LIMIT:
    raise zipfile.BadZipFile(f"its directory has {directory} bytes")


def _settings(entry: zipfile.ZipInfo) -> tuple:
  """What only the archive's directory says of an entry: the same for all entries."""
  return (
    entry.create_version,
    entry.create_system,
    entry.reserved,
    entry.internal_attr,
    entry.external_attr,
    entry.volume,
    entry.extra,
    entry.comment,
  )


def _verify_entry(file: BinaryIO, entry: zipfile.ZipInfo) -> tuple[int, int]:
  """Checks the bytes around the content of the entry that starts here; moves to its end.

  Returns:
    Position and size of the content.
  """
  year, month, day, hour, minute, second = entry.date_time
  name = entry.orig_filename.encode()
  sums = (entry.CRC, entry.compress_size, entry.file_size)
  streamed = entry.flag_bits & STREAMED
  header = struct.pack(
    "<4s5H3IH",
    b"PK\3\4",
    entry.extract_version,
    entry.flag_bits,
    zipfile.ZIP_STORED,
    hour << 11 | minute << 5 | second // 2,
    (year - 1980) << 9 | month << 5 | day,
    *((0, 0, 0) if streamed else sums),
    len(name),
  )
  if file.tell() != entry.header_offset or entry.compress_type != zipfile.ZIP_STORED:
    raise zipfile.BadZipFile(f"{entry.filename} is in the wrong place or compressed")
  if entry.compress_size != entry.file_size:
    raise zipfile.BadZipFile(f"{entry.filename} has two sizes")
  _expect(file, header, entry)
  (padding,) = struct.unpack("<H", file.read(2))
  _expect(file, name, entry)
  # Aligns the content: an extra field with the tag "FB", filled with "Z".
  _expect(file, (b"FB" + struct.pack("<H", max(0, padding - 4))).ljust(padding, b"Z"), entry)
  start = file.tell()
  file.seek(entry.file_size, 1)
  if streamed:
    _expect(file, b"PK\7\10" + struct.pack("<3I", *sums), entry)
  return start, entry.file_size


def _expect(file: BinaryIO, expected: bytes, entry: zipfile.ZipInfo) -> None:
  if file.read(len(expected)) != expected:
    raise zipfile.BadZipFile(f"the header of {entry.filename} was altered")


def _verify_directory(file: BinaryIO, entries: list[zipfile.ZipInfo]) -> None:
  """Checks the directory, which starts here and which zipfile has read, and what follows."""
  start, count = file.tell(), len(entries)
  directory = b"".join(map(_directory_entry, entries))
  size = len(directory)
  end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, start, 0)
  end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0x31E, 45, 0, 0, count, count, size, start)
  locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1)
  if file.read() not in (directory + end64 + locator + end, directory + end):
    raise zipfile.BadZipFile("its directory or its end was altered")


def _directory_entry(entry: zipfile.ZipInfo) -> bytes:
  year, month, day, hour, minute, second = entry.date_time
  name = entry.orig_filename.encode()
  return (
    struct.pack(
      "<4s4B4H3I5H2I",
      b"PK\1\2",
      entry.create_version,
      entry.create_system,
      entry.extract_version,
      entry.reserved,
      entry.flag_bits,
      entry.compress_type,
      hour << 11 | minute << 5 | second // 2,
      (year - 1980) << 9 | month << 5 | day,
      entry.CRC,
      entry.compress_size,
      entry.file_size,
      len(name),
      len(entry.extra),
      len(entry.comment),
      entry.volume,
      entry.internal_attr,
      entry.external_attr,
      entry.header_offset,
    )
    + name
    + entry.extra
    + entry.comment
  )
