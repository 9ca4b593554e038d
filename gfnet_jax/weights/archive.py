"""Verifies the zip archives that `torch.save` writes, down to the last byte.

PyTorch ignores the CRC-32 sums in its archives, and one changed attribute of an entry
can make it return uninitialised memory. The sums cover the content of the entries. The
bytes around it follow from names and sizes, so they are compared with what PyTorch 1.6
and later, whose zip writer is miniz, would have written.
"""

import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

STREAMED = 0x8  # flag: sum and sizes come after the content


def verify_archive(path: Path) -> None:
  """Reads a whole archive and checks it against its sums and PyTorch's layout.

  Raises:
    zipfile.BadZipFile: naming the first difference.
  """
  with path.open("rb") as file, zipfile.ZipFile(file) as archive:
    damaged = archive.testzip()
    if damaged is not None:
      raise zipfile.BadZipFile(f"the CRC-32 of {damaged} is wrong")
    entries = archive.infolist()
    if len({_settings(entry) for entry in entries}) != 1:
      raise zipfile.BadZipFile("its entries differ in their attributes")
    file.seek(0)
    for entry in entries:
      _verify_entry(file, entry)
    _verify_directory(file, entries)


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


def _verify_entry(file: BinaryIO, entry: zipfile.ZipInfo) -> None:
  """Checks the bytes around the content of the entry that starts here; moves to its end."""
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
  _expect(file, header, entry)
  (padding,) = struct.unpack("<H", file.read(2))
  _expect(file, name, entry)
  # Aligns the content: an extra field with the tag "FB", filled with "Z".
  _expect(file, (b"FB" + struct.pack("<H", max(0, padding - 4))).ljust(padding, b"Z"), entry)
  file.seek(entry.file_size, 1)
  if streamed:
    _expect(file, b"PK\7\10" + struct.pack("<3I", *sums), entry)


def _expect(file: BinaryIO, expected: bytes, entry: zipfile.ZipInfo) -> None:
  if file.read(len(expected)) != expected:
    raise zipfile.BadZipFile(f"the header of {entry.filename} was altered")


def _verify_directory(file: BinaryIO, entries: list[zipfile.ZipInfo]) -> None:
  """Checks what follows the directory, which starts here and which zipfile has read."""
  start, count = file.tell(), len(entries)
  size = sum(46 + len(entry.orig_filename.encode()) for entry in entries)
  end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, start, 0)
  end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0x31E, 45, 0, 0, count, count, size, start)
  locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1)
  file.seek(size, 1)
  if file.read() not in (end64 + locator + end, end):
    raise zipfile.BadZipFile("its end was altered")
