"""The files of `torch.save`, zip archives and the older format, read without PyTorch.

Storages are mapped, not read, so that only what is copied from them takes memory. The file
must not become shorter meanwhile: the system would end the process (SIGBUS).
"""

import mmap
import sys
from typing import Any, BinaryIO

from gfnet_jax.weights.archive import verify_archive
from gfnet_jax.weights.kinds import DamagedFileError, UnsuitableFileError
from gfnet_jax.weights.pickles import SIZE_LIMIT, interpret
from gfnet_jax.weights.torch_objects import TorchObjects

MAGIC_NUMBER, PROTOCOL_VERSION = 0x1950A86A20F9469CFC6C, 1001  # torch/serialization.py
COUNT = 8  # bytes of the number of elements in front of an older file's storage


def read_archive(file: BinaryIO) -> Any:
  """Reads a file of PyTorch 1.6 or later.

  Args:
    file: open for reading.

  Returns:
    What was saved, as `interpret` and `TorchObjects` have it: its arrays are views of the
    file, read-only.

  Raises:
    DamagedFileError, UnsuitableFileError, ForbiddenError: as `verify_archive`, `interpret`
      and `TorchObjects`.
  """
  extents = verify_archive(file)
  folder = next(iter(extents), "").partition("/")[0]
  if f"{folder}/data.pkl" not in extents:
    raise UnsuitableFileError(
      "it is a zip archive without a data.pkl, expected a file of torch.save or .safetensors; is "
      "it the right file?"
    )
  content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

  def read(name: str) -> memoryview:
    start, size = extents[f"{folder}/{name}"]
    return content[start : start + size]

  def load_storage(key: str, count: int, size: int) -> memoryview:
    storage = read(f"data/{key}")
    if len(storage) != count * size:
      raise ValueError(f"storage {key} has {len(storage)} bytes, expected {count * size}")
    return storage

  if f"{folder}/byteorder" in extents:
    _check_byteorder(bytes(read("byteorder")[:10]).decode("ascii", "replace"))
  pickle = read("data.pkl")
  if len(pickle) > SIZE_LIMIT:
    raise UnsuitableFileError(
      f"its pickle has {len(pickle)} bytes, expected at most {SIZE_LIMIT}; save the state dict "
      "alone"
    )
  value, _ = interpret(bytes(pickle), TorchObjects(load_storage))
  return value


def read_older_file(file: BinaryIO) -> Any:
  """Reads a file of PyTorch before 1.6: pickles, followed by the storages.

  Args, Returns, Raises: as `read_archive`.
  """
  content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
  sizes: dict[str, tuple[int, int]] = {}
  known = TorchObjects(lambda key, *size: sizes.update({key: size}))
  values, position = [], 0
  for _ in range(5):  # magic number, protocol, system, content, keys
    value, length = interpret(bytes(content[position : position + SIZE_LIMIT]), known)
    values.append(value)
    if values[0] != MAGIC_NUMBER or type(values[0]) is not int:
      raise UnsuitableFileError(
        "it is a pickle, but none of torch.save, expected .pth or .safetensors; save the state "
        "dict of the model in PyTorch (torch.save)"
      )
    if len(values) == 4:
      start = position
    position += length
  _, protocol, system, _, keys = values
  if protocol != PROTOCOL_VERSION or not isinstance(system, dict) or not isinstance(keys, list):
    raise DamagedFileError("the pickles at its beginning are not those of torch.save")
  _check_byteorder("little" if system.get("little_endian") is True else "big")
  storages = _locate(content, position, keys, sizes)
  value, _ = interpret(bytes(content[start:position]), TorchObjects(lambda key, *_: storages[key]))
  return value


def _locate(
  content: memoryview, position: int, keys: list[Any], sizes: dict[str, tuple[int, int]]
) -> dict[str, memoryview]:
  """The storages by key, which lie behind the pickles in the order of `keys`.

  The sizes are numbers of elements, and bytes of each; the number precedes a storage in the file.
  """
  storages = {}
  for key in keys:
    if not isinstance(key, str) or key not in sizes or key in storages:
      raise DamagedFileError("its list of storages does not fit its tensors")
    count, size = sizes[key]
    found = int.from_bytes(content[position : position + COUNT], "little")
    storages[key] = content[position + COUNT : position + COUNT + count * size]
    position += COUNT + count * size
    if position > len(content) or found != count:
      raise DamagedFileError(f"storage {key} is cut off, or not as large as its tensors say")
  if storages.keys() != sizes.keys() or position != len(content):
    raise DamagedFileError("its storages do not fill it")
  return storages


def _check_byteorder(found: str) -> None:
  if found != sys.byteorder:
    raise UnsuitableFileError(
      f"its numbers are {found}-endian, expected {sys.byteorder}-endian; load it in PyTorch and "
      "save it again"
    )
