"""What stands in the pickles of PyTorch files: tensors, and what training saves beside them.

Tensors become NumPy views of the file. Every other object becomes an `Opaque`, of which
only the name of its class or function is known.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from gfnet_jax.text import printable
from gfnet_jax.weights.pickles import NAME_LENGTH, Global, Opaque, dict_of, expect
from gfnet_jax.weights.sizes import FILE_LIMIT, check_dimensions, check_shape

DTYPES = {
  "float64": np.dtype(np.float64),
  "float32": np.dtype(np.float32),
  "float16": np.dtype(np.float16),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
STORAGES = {  # the type of their elements, and its size in bytes
  "Double": ("float64", 8),
  "Float": ("float32", 4),
  "Half": ("float16", 2),
  "BFloat16": ("bfloat16", 2),
  "Long": ("int64", 8),
  "Int": ("int32", 4),
  "Short": ("int16", 2),
  "Char": ("int8", 1),
  "Byte": ("uint8", 1),
  "Bool": ("bool", 1),
  "ComplexDouble": ("complex128", 16),
  "ComplexFloat": ("complex64", 8),
  "QInt8": ("qint8", 1),
  "QUInt8": ("quint8", 1),
  "QInt32": ("qint32", 4),
  "QUInt4x2": ("quint4x2", 1),
  "QUInt2x4": ("quint2x4", 1),
  "Untyped": ("bytes", 1),
}
STORAGE = re.compile(rf"torch\.(?:storage\.)?({'|'.join(STORAGES)})Storage")
REBUILD = "torch._utils._rebuild_"
DICTS = ("collections.OrderedDict", "collections.defaultdict")
NUMBERS = re.compile(r"numpy\._?core\.multiarray\.scalar")
# No name is ever looked up, so that none can do harm. These, which no training needs, show
# that somebody meant to.
HOSTILE = re.compile(
  r"""(?:asyncio|code|ctypes|importlib|multiprocessing|pdb|_?pickle|pty|runpy|shutil|socket
      |urllib|webbrowser)\..+
  | (?:\w+\.)*(?:nt|os|posix|subprocess|sys)\.\w+
  | (?:builtins|__builtin__)\.
    (?:apply|breakpoint|compile|eval|exec|execfile|globals|__import__|input|locals|open|vars)
  | (?:numpy|torch)\.(?:\w+\.)*_?load\w*
  | types\.(?:CodeType|FunctionType)""",
  re.VERBOSE,
)
NAME = re.compile(r"\w+(?:\.\w+)+")
NO_WEIGHTS = {  # tensors whose values are not plainly in the file
  "meta_tensor_no_storage": "a tensor without values (meta)",
  "nested_tensor": "a nested tensor",
  "sparse_tensor": "a sparse tensor",
  "qtensor": "a quantized tensor",
}

LoadStorage = Callable[[str, int, int], memoryview | None]


class ForbiddenError(Exception):
  """A pickle asks for what would run code; the message names it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
  """The memory that tensors are views of.

  Attributes:
    dtype: of its elements, or "bytes".
    size: in bytes.
    buffer: its bytes, or None where they are not known yet: its tensors are Opaque then.
  """

  dtype: str
  size: int
  buffer: memoryview | None


class TorchObjects:
  """The `Objects` of PyTorch's pickles.

  Args:
    load_storage: called with the key of every storage, the number of its elements, and the bytes
      of each.

  Raises:
    ForbiddenError: where a pickle asks for what would run code.
    UnsuitableFileError: for a tensor that is too large.
  """

  def __init__(self, load_storage: LoadStorage):
    self.load_storage = load_storage
    self.storages: dict[str, Storage] = {}

  def allow(self, name: str) -> Global:
    """A class or function by its name, which stays a name; ForbiddenError for one of attacks."""
    if HOSTILE.fullmatch(name) or not NAME.fullmatch(name):
      raise ForbiddenError(printable(name))
    return Global(name)

  def load(self, identifier: Any) -> Storage:
    """The storage that a persistent id stands for; ValueError for one of an unknown kind."""
    match identifier:
      # Before PyTorch 0.4 there could be a view of a storage, in place of None.
      case ("storage", Global(name=name), str(key), str(), int(count), *views) if (
        views in ([], [None]) and len(key) <= NAME_LENGTH and 0 <= count <= FILE_LIMIT
      ):
        if match := STORAGE.fullmatch(name):
          dtype, size = STORAGES[match[1]]
          return self._storage(key, dtype, count, size)
    raise ValueError("a storage of an unknown kind")

  def _storage(self, key: str, dtype: str, count: int, size: int) -> Storage:
    if key not in self.storages:
      self.storages[key] = Storage(dtype, count * size, self.load_storage(key, count, size))
    storage = self.storages[key]
    if (storage.dtype, storage.size) != (dtype, count * size):
      raise ValueError("a storage of two kinds")
    return storage

  def call(self, name: str, arguments: tuple) -> Any:
    """What a call of a class or function makes: a dict, a tensor, or an opaque object."""
    if name in DICTS:
      return _dict(arguments)
    if name.startswith(REBUILD):
      return _rebuild(name.removeprefix(REBUILD), arguments)
    if name == "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes
      function, _, inner, _ = arguments
      kind = expect(function, Global).name.removeprefix(REBUILD)
      return _rebuild(kind, expect(inner, tuple))
    return Opaque(name, is_number=NUMBERS.fullmatch(name) is not None)


def _dict(arguments: tuple) -> dict[Any, Any]:
  match arguments:
    case ([*pairs],):  # an OrderedDict as Python 2 wrote it
      return dict_of([item for key, value in pairs for item in (key, value)])
  return {}


def _rebuild(kind: str, arguments: tuple) -> Any:
  """The tensor that `torch._utils._rebuild_{kind}` makes."""
  match kind, arguments:
    case "tensor", (Storage() as storage, offset, shape, stride):
      return _tensor(storage, storage.dtype, offset, shape, stride)
    case "tensor_v2", (Storage() as storage, offset, shape, stride, _, _, *metadata):
      return _tensor(storage, storage.dtype, offset, shape, stride, *metadata)
    case "tensor_v3", (Storage() as storage, offset, shape, stride, _, _, dtype, *metadata):
      dtype = expect(dtype, Global).name.removeprefix("torch.")
      return _tensor(storage, dtype, offset, shape, stride, *metadata)
    case "parameter" | "parameter_with_state", (data, *_):
      return expect(data, np.ndarray | Opaque)
    case "tensor" | "tensor_v2" | "tensor_v3", _:
      raise ValueError("a tensor without its storage")
  return Opaque(NO_WEIGHTS.get(kind, "a special tensor"), is_tensor=True)


def _tensor(
  storage: Storage, dtype: str, offset: int, shape: tuple, stride: tuple, metadata: Any = None
) -> np.ndarray | Opaque:
  """A view of a storage; `offset` and `stride` count elements."""
  if len(expect(shape, tuple)) != len(expect(stride, tuple)):
    raise ValueError("a tensor of impossible sizes")
  check_dimensions(shape)  # before looking at them
  if not all(type(size) is int and size >= 0 for size in (offset, *shape, *stride)):
    raise ValueError("a tensor of impossible sizes")
  check_shape(shape)
  if isinstance(metadata, dict) and metadata:  # names what is set, and is left out if empty
    return Opaque("a view of negated values", is_tensor=True)
  if dtype not in DTYPES or storage.buffer is None:
    return Opaque(f"torch.{dtype}", is_tensor=True)
  dtype = DTYPES[dtype]
  if 0 in shape:
    return np.zeros(shape, dtype)
  strides = [step * dtype.itemsize for step in stride]
  return np.ndarray(shape, dtype, storage.buffer, offset * dtype.itemsize, strides)
