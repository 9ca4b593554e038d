"""A cache of arrays that describe a data set and take long to compute.

It is kept outside the data, which may be read-only or shared: in $XDG_CACHE_HOME/gfnet_jax,
or ~/.cache/gfnet_jax. A cache file that is missing, damaged or cannot be written costs
time, never correctness.
"""

import hashlib
import os
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def load_arrays(kind: str, path: Path) -> Arrays | None:
  """The arrays that `store_arrays` has stored, or None; the caller checks if they are current.

  Args:
    kind: of description, such as "folder".
    path: of the directory or file that they describe.
  """
  try:
    with _file(kind, path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      return dict(arrays)
  # A damaged zip file shows as any of these.
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError):
    return None


def store_arrays(kind: str, path: Path, arrays: Arrays) -> None:
  """Stores arrays under (kind, path), replacing earlier ones in one step."""
  file = _file(kind, path)
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Under a unique name: several processes may store the same arrays at once.
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
      np.savez(temporary, **arrays)
    Path(temporary.name).replace(file)
  except OSError as error:
    warnings.warn(f"{file.parent} cannot be written ({error.strerror}): no cache", stacklevel=2)


def _file(kind: str, path: Path) -> Path:
  root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gfnet_jax"
  key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
  return root / f"{kind}-{key}.npz"
