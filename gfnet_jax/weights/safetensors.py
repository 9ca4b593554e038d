"""Files of safetensors: single ones, and those in several shards with an index."""

import json
import mmap
import re
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from gfnet_jax.text import printable
from gfnet_jax.weights.kinds import DamagedFileError
from gfnet_jax.weights.pickles import Opaque
from gfnet_jax.weights.sizes import check_shape

DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Bits per number of the types that are read past.
OTHER_DTYPES = {
  **dict.fromkeys(("I64", "U64", "C64"), 64),
  **dict.fromkeys(("I32", "U32"), 32),
  **dict.fromkeys(("I16", "U16"), 16),
  **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
  **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
  **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
  "F4": 4,
}
HEADER_LIMIT = 1 << 22  # bytes; that of the largest network has a hundred thousand


def read_safetensors(file: BinaryIO) -> dict[str, np.ndarray | Opaque]:
  """Reads one file.

  Args:
    file: open for reading.

  Returns:
    Arrays by key, in the order of the data: views of the file, read-only. Tensors of other
    types than floats of 16 bits and more are Opaque.

  Raises:
    DamagedFileError: unless the tensors fill the file, without gap or overlap.
    UnsuitableFileError: for a tensor that is too large.
  """
  content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
  start = 8 + int.from_bytes(content[:8], "little")
  if start > len(content):
    raise DamagedFileError("its safetensors header is longer than the file")
  entries = _parse_header(content[8:start])
  entries.pop("__metadata__", None)
  position, arrays = 0, {}
  for key, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
    dtype, shape = entry["dtype"], entry["shape"]
    end = position + _size(key, dtype, shape)
    if entry["data_offsets"] != [position, end]:
      raise DamagedFileError(f"its safetensors header is inconsistent at {printable(key)}")
    data = content[start + position : start + end]
    if dtype not in DTYPES:
      arrays[key] = Opaque(f"of type {dtype}", is_tensor=True)
    elif len(data) == end - position:
      arrays[key] = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
    position = end
  if len(content) != start + position:
    raise DamagedFileError(
      f"it has {len(content)} bytes, its safetensors header says {start + position}"
    )
  return arrays


def write_safetensors(file: BinaryIO, weights: Mapping[str, np.ndarray]) -> None:
  """Writes arrays of float32 or float64 by key, in this order."""
  names = {dtype: name for name, dtype in DTYPES.items()}
  entries, position = {}, 0
  for key, array in weights.items():
    offsets = [position, position + array.nbytes]
    entries[key] = {
      "dtype": names[array.dtype],
      "shape": list(array.shape),
      "data_offsets": offsets,
    }
    position = offsets[1]
  header = json.dumps(entries, separators=(",", ":")).encode()
  header += b" " * (-len(header) % 8)  # aligns the tensors
  file.write(struct.pack("<Q", len(header)) + header)
  for array in weights.values():
    file.write(array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).data)


def read_index(file: BinaryIO) -> dict[str, str]:
  """Reads the index of weights in several files, as *.safetensors.index.json holds it.

  Returns:
    The names of the files by key.

  Raises:
    DamagedFileError: if it is none, or names files outside of its directory.
  """
  try:
    content = _parse_json(file.read(HEADER_LIMIT + 1))
    shards = content["weight_map"]
    if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
      raise ValueError("weight_map is not a table of names")
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise DamagedFileError(
      f"it is JSON, but no index of weights in several files ({printable(error)})"
    ) from error
  for name in shards.values():
    if name in ("", ".", "..") or re.search(r"[/\\\x00]", name) or len(name) > 255:
      raise DamagedFileError(f"its index names '{printable(name)}', expected a file beside it")
  return shards


def _size(key: str, dtype: str, shape: list[int]) -> int:
  """Bytes of a tensor."""
  check_shape(shape)
  if dtype in DTYPES:
    return int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize
  if dtype not in OTHER_DTYPES:
    known = ", ".join(DTYPES)
    raise DamagedFileError(
      f"{printable(key)} is of type {printable(dtype, 40)}, expected one of {known}"
    )
  return int(np.prod(shape, dtype=np.int64)) * OTHER_DTYPES[dtype] // 8


def _parse_header(header: memoryview) -> dict[str, dict]:
  """Returns the entries of a header by key, checked against the format."""
  try:
    if len(header) > HEADER_LIMIT:
      raise ValueError(f"it has {len(header)} bytes, expected at most {HEADER_LIMIT}")
    entries = _parse_json(bytes(header))
    for key, entry in entries.items():
      if key != "__metadata__" and not _is_entry(entry):
        raise ValueError(f"malformed entry {printable(key)}")
  except (ValueError, RecursionError) as error:
    raise DamagedFileError(f"its safetensors header is damaged ({printable(error)})") from error
  return entries


def _parse_json(text: bytes) -> dict[str, Any]:
  """Parses an object without ambiguities.

  Raises:
    ValueError, RecursionError: if it is none.
  """
  if len(text) > HEADER_LIMIT:
    raise ValueError(f"more than {HEADER_LIMIT} bytes")
  content = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
  if not isinstance(content, dict):
    raise ValueError("no object")
  return content


def _is_entry(entry: Any) -> bool:
  return (
    isinstance(entry, dict)
    and entry.keys() == {"dtype", "shape", "data_offsets"}
    and isinstance(entry["dtype"], str)
    and _are_sizes(entry["shape"])
    and _are_sizes(entry["data_offsets"])
    and len(entry["data_offsets"]) == 2
  )


def _are_sizes(values: Any) -> bool:
  return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  entries = dict(pairs)
  if len(entries) != len(pairs):
    raise ValueError("a key occurs twice")
  return entries
