"""Arrays that take long to find out about a data directory, kept for the next time.

They live outside of the data, which may be read-only and shared: in
$XDG_CACHE_HOME/gfnet_jax, or ~/.cache/gfnet_jax. A file that is missing, damaged or
cannot be written costs time, never correctness.
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
  """The arrays that `store_arrays` kept, or None; whether they are still true is not checked.

  Args:
    kind: of knowledge, such as "folder".
    path: of the directory or file that they are about.
  """
  try:
    with _file(kind, path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      return dict(arrays)
  # A damaged zip file shows as any of these.
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError):
    return None


def store_arrays(kind: str, path: Path, arrays: Arrays) -> None:
  """Keeps arrays under (kind, path), replacing older ones in one step."""
  file = _file(kind, path)
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: several processes may write the same knowledge at once.
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
      np.savez(temporary, **arrays)
    Path(temporary.name).replace(file)
  except OSError as error:
    warnings.warn(f"{file.parent} cannot be written ({error.strerror}): no cache", stacklevel=2)


def _file(kind: str, path: Path) -> Path:
  root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gfnet_jax"
  key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
  return root / f"{kind}-{key}.npz"
