"""Files of weights, PyTorch's and safetensors: read with suspicion, written atomically.

A file from the network may be damaged or hostile. Nothing in a pickle is run: it is
interpreted, without PyTorch, and only tensors, containers and plain values are made of
it. Archives are verified before they are read, the headers of safetensors files must
follow the format to the letter, and sizes and depths are bounded.
"""

import importlib.util
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from gfnet_jax.errors import UserError
from gfnet_jax.files import open_atomically
from gfnet_jax.text import printable
from gfnet_jax.weights.kinds import (
  HEAD,
  DamagedFileError,
  UnsuitableFileError,
  looks_like_html,
  looks_like_json,
  other_kind,
)
from gfnet_jax.weights.pickles import Opaque
from gfnet_jax.weights.safetensors import read_index, read_safetensors, write_safetensors
from gfnet_jax.weights.sizes import FILE_LIMIT, check_count
from gfnet_jax.weights.torch_files import read_archive, read_older_file
from gfnet_jax.weights.torch_objects import ForbiddenError
from gfnet_jax.weights.unwrap import Content, find_state_dict

StateDict = dict[str, np.ndarray]
NEEDS_TORCH = "PyTorch is needed to write .pth files; `pip install torch`, or use .safetensors"


def read_state_dict(
  path: Path | str,
  *,
  ema: bool = False,
  allow_nan: bool = False,
  dtype: DTypeLike = np.float32,
) -> StateDict:
  """Reads weights from a PyTorch or safetensors file, which is told by its content.

  The file holds a state dict, or a checkpoint with one under 'model' (or 'model_ema') or
  one of the other places that `find_state_dict` knows; it takes off the prefixes of
  wrappers, too. The index of weights in several files stands for all of them.

  Args:
    path: the file.
    ema: take the averaged weights in a checkpoint, 'model_ema'.
    allow_nan: accept NaN and infinite values.
    dtype: float32, or float64 to keep the bits of such files.

  Returns:
    Arrays of that type by key, in the order of the file.

  Raises:
    UserError: if the file is missing, damaged, unsafe, too large or of another kind, or if
      weights are not finite.
  """
  path = Path(path)
  head = _read_head(path)
  content = _read_shards(path) if looks_like_json(head) else _read(path, head)
  try:
    found = find_state_dict(content, ema=ema)
  except UserError as error:
    raise UserError(f"{path} {error}") from error
  weights = _copies(found, path, dtype)
  if not allow_nan:
    _refuse_nan(weights, path)
  return weights


def write_state_dict(path: Path | str, weights: Mapping[str, np.ndarray]) -> None:
  """Writes weights for PyTorch: {'model': state dict} as .pth, or .safetensors.

  Args:
    path: a new file; its suffix chooses the format.
    weights: float arrays by key, written in this order, each in its own type.

  Raises:
    UserError: as `check_writer`, or if the file cannot be written.
  """
  path = Path(path)
  check_writer(path)
  try:
    with open_atomically(path) as file:
      _WRITERS[path.suffix](file, weights)
  except OSError as error:
    raise UserError(f"cannot write {path} ({error.strerror}); choose another place") from error
  except RuntimeError as error:  # PyTorch's writer, on a full disk for instance
    raise UserError(
      f"cannot write {path}: {printable(str(error).splitlines()[0])}; make room"
    ) from error


def check_writer(path: Path) -> None:
  """Checks that weights can be written to a file, before there are any.

  Raises:
    UserError: if the suffix names no format, the file exists, or PyTorch is needed and missing.
  """
  if path.suffix not in _WRITERS:
    raise UserError(f"{path} must end in {' or '.join(_WRITERS)}, which chooses the format")
  if path.exists():
    raise UserError(f"{path} exists already; remove it or choose another name")
  if path.suffix == ".pth" and importlib.util.find_spec("torch") is None:
    raise UserError(NEEDS_TORCH)


def _read_head(path: Path) -> bytes:
  """The first bytes of a file of acceptable size."""
  with _reading(path):
    mode, size = path.stat().st_mode, path.stat().st_size
    is_special = not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    if not is_special:
      with path.open("rb") as file:
        head = file.read(HEAD)
  if is_special:  # opening a pipe would wait
    raise UserError(f"{path} is a pipe or device, expected a file of weights; give its path")
  if size > FILE_LIMIT:
    raise UserError(
      f"{path} has {size} bytes, expected at most {FILE_LIMIT} of a GFNet; is it the right file?"
    )
  if looks_like_html(head):
    raise UserError(
      f"{path} is an HTML page, not a file of weights; open its address in a browser, download "
      "the file there and give its path"
    )
  return head


@contextmanager
def _reading(path: Path) -> Iterator[None]:
  """Raises UserError if a file cannot be read."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"cannot read {printable(path)} ({error.strerror}); expected a file of weights"
    ) from error


def _read(path: Path, head: bytes) -> Any:
  """The content of one file of any format, which begins like this."""
  try:
    with _reading(path), path.open("rb") as file:
      return _reader(head)(file)
  except DamagedFileError as error:
    raise UserError(f"{path} cannot be used: {error}; delete it and get the file again") from error
  except UnsuitableFileError as error:
    raise UserError(f"{path} cannot be used: {error}") from error
  except ForbiddenError as error:
    raise UserError(
      f"{path} is refused: its pickle asks for {error}, which weights do not need and which may "
      "run code; nothing was run (if you trust its source, load it in PyTorch and save "
      "model.state_dict() alone)"
    ) from error


def _reader(head: bytes) -> Callable[[BinaryIO], Any]:
  """Reads a file that begins like this."""
  if not head:
    raise DamagedFileError("it is empty")
  if head[8:9] == b"{":
    return read_safetensors
  if head.startswith(b"PK\x03\x04"):
    return read_archive
  if head.startswith(b"\x80"):
    return read_older_file
  if kind := other_kind(head):
    raise UnsuitableFileError(str(kind))
  raise DamagedFileError("it is neither a PyTorch file nor safetensors")


def _read_shards(index: Path) -> dict[str, Any]:
  """The tensors in the files that an index names."""
  try:
    with _reading(index), index.open("rb") as file:
      shards = read_index(file)
  except DamagedFileError as error:
    raise UserError(f"{index} cannot be used: {error}; get the file again") from error
  keys: dict[str, set[str]] = {}
  for key, name in shards.items():
    keys.setdefault(name, set()).add(key)
  for name in keys:
    if not index.with_name(name).exists():
      raise UserError(
        f"{index} names {printable(name)}, which is not beside it; get all of its files"
      )
  content = {}
  for name in keys:
    shard = index.with_name(name)
    tensors = _read(shard, _read_head(shard))
    if not isinstance(tensors, Mapping) or set(tensors) != keys[name]:
      raise UserError(f"{shard} does not hold the tensors that {index} says; get both again")
    content |= tensors
  return {key: content[key] for key in shards}


def _copies(weights: Content, path: Path, dtype: DTypeLike) -> StateDict:
  """Of a float type, so that nothing refers to the file any longer."""
  for key, value in weights.items():
    if isinstance(value, Opaque):
      raise UserError(
        f"{path} cannot be used: {printable(key)} is {value} in place of a weight, expected dense "
        "floats of 16, 32 or 64 bits; convert it in PyTorch, or leave it out"
      )
  try:
    check_count(sum(array.size for array in weights.values()))
  except UnsuitableFileError as error:
    raise UserError(f"{path} cannot be used: {error}") from error
  with np.errstate(all="ignore"):  # what is too large becomes infinite, which is told
    return {key: np.array(array, dtype, order="C") for key, array in weights.items()}


def _refuse_nan(weights: StateDict, path: Path) -> None:
  bad = [key for key, array in weights.items() if not np.isfinite(array).all()]
  if bad:
    more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
    raise UserError(
      f"{path}: {printable(bad[0])}{more} hold NaN or infinite values; expected finite weights "
      "(--allow-nan converts them as they are)"
    )


def _write_pth(file: BinaryIO, weights: Mapping[str, np.ndarray]) -> None:
  try:
    import torch
  except ImportError as error:  # an installation that is damaged
    raise UserError(NEEDS_TORCH) from error
  torch.save({"model": {key: torch.from_numpy(array) for key, array in weights.items()}}, file)


_WRITERS = {".pth": _write_pth, ".safetensors": write_safetensors}
