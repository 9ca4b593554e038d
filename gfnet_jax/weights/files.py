"""Files of weights, PyTorch's and safetensors: read with suspicion, written atomically.

A file from the network may be damaged or hostile. Nothing in a pickle gets to run: only
tensors, containers and the `argparse.Namespace` of official training checkpoints may be
in it. Archives are verified before PyTorch sees them, and the headers of safetensors
files must follow the format to the letter.
"""

import argparse
import json
import math
import os
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from gfnet_jax.errors import UserError
from gfnet_jax.weights.archive import verify_archive

SAFETENSORS_DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes, as in the reference implementation

StateDict = dict[str, np.ndarray]


class DamagedFileError(Exception):
  """No writer of the format would have written these bytes."""


def read_state_dict(path: Path | str, *, ema: bool = False, allow_nan: bool = False) -> StateDict:
  """Reads weights from a PyTorch or safetensors file, which is told by its content.

  The file holds a state dict, or a checkpoint with one under 'model' (or 'model_ema').
  The prefix 'module.', a trace of distributed training, is removed.

  Args:
    path: the file.
    ema: take the averaged weights in a checkpoint, 'model_ema'.
    allow_nan: accept NaN and infinite values.

  Returns:
    float32 arrays by key, in the order of the file.

  Raises:
    UserError: if the file is missing, damaged, unsafe or of another kind, or if weights
      are not finite.
  """
  path = Path(path)
  try:
    with path.open("rb") as file:
      head = file.read(1024)
  except OSError as error:
    raise UserError(f"cannot read {path} ({error.strerror}); expected a file of weights") from error
  if looks_like_html(head):
    raise UserError(
      f"{path} is an HTML page, not a file of weights; open its address in a browser, download "
      "the file there and give its path"
    )
  try:
    if head[8:9] == b"{":
      content = _read_safetensors(path)
    elif head.startswith(b"PK\x03\x04"):
      content = _read_archive(path)
    elif head.startswith(b"\x80"):
      content = _load_with_torch(path)
    else:
      raise DamagedFileError("it is neither a PyTorch file nor safetensors")
  except DamagedFileError as error:
    raise UserError(f"{path} cannot be used: {error}; get the file again") from error
  weights = _as_float32(_select(content, ema, path), path)
  if not allow_nan:
    _refuse_nan(weights, path)
  return weights


def write_state_dict(path: Path | str, weights: Mapping[str, np.ndarray]) -> None:
  """Writes weights for PyTorch: {'model': state dict} as .pth, or .safetensors.

  Args:
    path: a new file; its suffix chooses the format.
    weights: float32 arrays by key, written in this order.

  Raises:
    UserError: if the suffix is another, or the file exists or cannot be written.
  """
  path = Path(path)
  writers = {".pth": _write_pth, ".safetensors": _write_safetensors}
  if path.suffix not in writers:
    raise UserError(f"{path} must end in {' or '.join(writers)}, which chooses the format")
  if path.exists():
    raise UserError(f"{path} exists already; remove it or choose another name")
  try:
    with _atomically(path) as file:
      writers[path.suffix](file, weights)
  except RuntimeError as error:  # PyTorch's writer, on a full disk for instance
    raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}; make room") from error


def looks_like_html(head: bytes) -> bool:
  """Whether a file that begins with these bytes is a web page."""
  return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))


def _select(content: Any, ema: bool, path: Path) -> dict[str, Any]:
  """The state dict in the content of a file."""
  if not isinstance(content, Mapping):
    raise UserError(f"{path} holds a {type(content).__name__}, expected a dict of weights")
  entry = "model_ema" if ema else "model"
  if isinstance(content.get(entry), Mapping):
    content = content[entry]
  elif ema or not all(map(_is_tensor, content.values())):
    found = ", ".join(map(repr, list(content)[:8]))
    raise UserError(f"{path} holds no {entry!r}, expected a checkpoint with it; found {found}")
  if not content:
    raise UserError(f"{path} holds no tensors, expected weights")
  prefix = "module."
  if all(isinstance(key, str) and key.startswith(prefix) for key in content):
    content = {key.removeprefix(prefix): value for key, value in content.items()}
  return dict(content)


def _is_tensor(value: Any) -> bool:
  return hasattr(value, "shape") and hasattr(value, "dtype")


def _as_float32(weights: Mapping[Any, Any], path: Path) -> StateDict:
  arrays = {}
  for key, value in weights.items():
    if not isinstance(key, str) or not _is_tensor(value):
      raise UserError(
        f"{path}: {key!r} is a {type(value).__name__}, expected a tensor under a name"
      )
    if not isinstance(value, np.ndarray):
      if not value.is_floating_point() or value.layout != _torch().strided:
        raise UserError(f"{path}: {key} is {value.dtype} ({value.layout}), expected dense floats")
      value = value.detach().float().numpy()
    arrays[key] = value.astype(np.float32, copy=False)
  return arrays


def _refuse_nan(weights: StateDict, path: Path) -> None:
  bad = [key for key, array in weights.items() if not np.isfinite(array).all()]
  if bad:
    more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
    raise UserError(
      f"{path}: {bad[0]}{more} hold NaN or infinite values; expected finite weights "
      "(--allow-nan converts them as they are)"
    )


def _torch():
  try:
    import torch
  except ImportError as error:
    raise UserError(
      "PyTorch is needed for .pth files; `pip install torch`, or use .safetensors"
    ) from error
  return torch


def _read_archive(path: Path) -> Any:
  try:
    verify_archive(path)
  except Exception as error:  # damage can show as any exception
    raise DamagedFileError(f"its zip archive is damaged ({error})") from error
  return _load_with_torch(path)


def _load_with_torch(path: Path) -> Any:
  torch = _torch()
  try:
    # Official training checkpoints hold the command line as a Namespace.
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
      warnings.simplefilter("ignore")  # of damage: the exception says it better
      return torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # damage can show as any exception
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    if forbidden:
      raise UserError(
        f"{path} is refused: its pickle asks for {forbidden[1]}, which weights do not need and "
        "which may run code; nothing was run"
      ) from error
    reason = " ".join(str(error).split())[:200]
    raise DamagedFileError(f"PyTorch cannot read it ({type(error).__name__}: {reason})") from error


def _write_pth(file: BinaryIO, weights: Mapping[str, np.ndarray]) -> None:
  torch = _torch()
  torch.save({"model": {key: torch.from_numpy(array) for key, array in weights.items()}}, file)


def _read_safetensors(path: Path) -> StateDict:
  """Returns arrays by key, in the order of the data.

  Raises:
    DamagedFileError: unless the tensors fill the file, without gap or overlap.
  """
  data = path.read_bytes()
  start = 8 + int.from_bytes(data[:8], "little")
  if start > min(len(data), SAFETENSORS_HEADER_LIMIT):
    raise DamagedFileError("its safetensors header is longer than the file")
  entries = _parse_safetensors_header(data[8:start])
  entries.pop("__metadata__", None)
  position, arrays = start, {}
  for key, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
    dtype, shape = SAFETENSORS_DTYPES.get(entry["dtype"]), entry["shape"]
    if dtype is None:
      known = ", ".join(SAFETENSORS_DTYPES)
      raise DamagedFileError(f"{key} is of type {entry['dtype']}, expected one of {known}")
    size = math.prod(shape) * dtype.itemsize
    if entry["data_offsets"] != [position - start, position - start + size]:
      raise DamagedFileError(f"its safetensors header is inconsistent at {key}")
    if position + size <= len(data):
      arrays[key] = np.frombuffer(data, dtype, math.prod(shape), position).reshape(shape)
    position += size
  if position != len(data):
    raise DamagedFileError(f"it has {len(data)} bytes, its safetensors header says {position}")
  return arrays


def _parse_safetensors_header(header: bytes) -> dict[str, dict]:
  """Returns the entries of a header by key, checked against the format."""
  try:
    if re.search(rb"[\x00-\x1f]", header):
      raise ValueError("control characters")
    entries = json.loads(header.decode(), object_pairs_hook=_without_duplicates)
    for key, entry in entries.items():
      if key != "__metadata__" and not _is_safetensors_entry(entry):
        raise ValueError(f"malformed entry {key}")
  except ValueError as error:
    raise DamagedFileError(f"its safetensors header is damaged ({error})") from error
  return entries


def _is_safetensors_entry(entry: Any) -> bool:
  return (
    isinstance(entry, dict)
    and entry.keys() == {"dtype", "shape", "data_offsets"}
    and isinstance(entry["dtype"], str)
    and _are_sizes(entry["shape"])
    and _are_sizes(entry["data_offsets"])
    and len(entry["data_offsets"]) == 2
  )


def _are_sizes(values: Any) -> bool:
  return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  entries = dict(pairs)
  if len(entries) != len(pairs):
    raise ValueError("a key occurs twice")
  return entries


def _write_safetensors(file: BinaryIO, weights: Mapping[str, np.ndarray]) -> None:
  entries, position = {}, 0
  for key, array in weights.items():
    offsets = [position, position + array.nbytes]
    entries[key] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
    position = offsets[1]
  header = json.dumps(entries, separators=(",", ":")).encode()
  header += b" " * (-len(header) % 8)  # aligns the tensors
  file.write(struct.pack("<Q", len(header)) + header)
  for array in weights.values():
    file.write(array.astype("<f4", order="C", copy=False).data)


@contextmanager
def _atomically(path: Path) -> Iterator[BinaryIO]:
  """Opens a file that appears under its name only when it is complete.

  Raises:
    UserError: if it cannot be written.
  """
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    with partial.open("wb") as file:
      yield file
    partial.rename(path)
  except OSError as error:
    raise UserError(f"cannot write {path} ({error.strerror}); choose another place") from error
  finally:
    partial.unlink(missing_ok=True)
