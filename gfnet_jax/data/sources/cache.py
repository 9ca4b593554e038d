"""A cache of arrays that describe a data set and take long to compute.

It is kept outside the data, which may be read-only or shared: in $XDG_CACHE_HOME/gfnet_jax,
or ~/.cache/gfnet_jax. A cache file that is missing, damaged or cannot be written costs
time, never correctness: each ends with the SHA-256 sum of what comes before.
"""

import hashlib
import io
import os
import tempfile
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gfnet_jax.text import printable

Arrays = dict[str, np.ndarray]
SUM_BYTES = hashlib.sha256().digest_size
MAX_BYTES = 2**32  # of a cache file


def load_arrays(kind: str, path: Path) -> Arrays | None:
  """The arrays that `store_arrays` has stored, or None; the caller checks if they are current.

  Args:
    kind: of description, such as "listing".
    path: of the directory or file that they describe.
  """
  try:
    file = cache_file(kind, path)
    if not file.is_file():  # a pipe would be waited for
      return None
    with file.open("rb") as opened:
      if not _is_whole(opened):
        return None
      opened.seek(0)
      with np.load(opened, allow_pickle=False) as arrays:
        return dict(arrays)
  except (OSError, RuntimeError, ValueError):  # without a home, without rights, of no arrays
    return None


def store_arrays(kind: str, path: Path, arrays: Arrays) -> None:
  """Stores arrays under (kind, path), replacing earlier ones in one step."""
  content = io.BytesIO()
  np.savez(content, **arrays)
  data = content.getbuffer()
  try:
    file = cache_file(kind, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Under a unique name: several processes may store the same arrays at once.
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
      try:
        temporary.write(data)
        temporary.write(hashlib.sha256(data).digest())
        temporary.flush()
        Path(temporary.name).replace(file)
      except OSError:
        Path(temporary.name).unlink()
        raise
  except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
    warnings.warn(f"the cache cannot be written: no cache ({printable(error)})", stacklevel=2)


def cache_file(kind: str, path: Path) -> Path:
  """Where the arrays of (kind, path) are stored.

  Raises:
    RuntimeError: if there is neither $XDG_CACHE_HOME nor a home directory.
  """
  root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gfnet_jax"
  key = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
  return root / f"{kind}-{key}.npz"


def _is_whole(file: BinaryIO) -> bool:
  """Whether a file ends with the sum of what comes before."""
  left = os.fstat(file.fileno()).st_size - SUM_BYTES
  if not 0 < left <= MAX_BYTES:
    return False
  digest = hashlib.sha256()
  while left > 0:
    block = file.read(min(left, 2**20))
    if not block:  # it is being changed
      return False
    digest.update(block)
    left -= len(block)
  return digest.digest() == file.read()
