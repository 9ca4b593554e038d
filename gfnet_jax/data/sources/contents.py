"""What image files hold: a digest of the bytes of each, and whether it can be decoded.

Both are cached: a file is read again when its size, the time of its last change or the version of
Pillow differs, and as long as it cannot be read, which may pass.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from tqdm import tqdm

from gfnet_jax.console import say
from gfnet_jax.data.decode import BadImageError, allow_reduced, load_rgb, open_image
from gfnet_jax.data.sources.cache import Arrays, load_arrays, store_arrays
from gfnet_jax.data.sources.folder import read_file
from gfnet_jax.data.sources.records import BadRecordError
from gfnet_jax.text import printable

READERS = 4  # threads; decoding lets others run
REDUCED = 8  # a JPEG is decoded at this fraction of its size, which reads all of it
KINDS = dict(paths="S", states="S", digests="S", problems="S")


class Content(NamedTuple):
  """What a file holds.

  Attributes:
    digest: half of the SHA-256 of its bytes, in hexadecimal; empty if it cannot be read.
    problem: why it is no image that can be decoded; empty if it is one.
  """

  digest: str
  problem: str


def read_contents(directory: Path, paths: list[bytes]) -> list[Content]:
  """Reads and decodes files, or takes what is known of them from the cache.

  Args:
    directory: of the data set, by which the cache finds its file.
    paths: of the files, relative to the directory.
  """
  states = [_state(directory / os.fsdecode(path)) for path in paths]
  known = _known(directory)
  new = [key for key in zip(paths, states, strict=True) if key not in known]
  if new:
    counted = "1 image" if len(new) == 1 else f"{len(new)} images"
    say(f"{directory}: reading {counted}, once, to see which are the same or damaged")
    files = [directory / os.fsdecode(path) for path, _ in new]
    with ThreadPoolExecutor(READERS) as pool:
      found = tqdm(
        pool.map(_read, files), total=len(new), unit="img", leave=False, delay=2, disable=None
      )
      known |= zip(new, found, strict=True)
    _store(directory, {key: known[key] for key in zip(paths, states, strict=True)})
  return [known[key] for key in zip(paths, states, strict=True)]


def _store(directory: Path, known: dict[tuple[bytes, str], Content]) -> None:
  """Caches what was read."""
  rows = [(*key, *content) for key, content in known.items() if content.digest and key[1]]
  columns = zip(*rows, strict=True) if rows else [()] * len(KINDS)
  arrays = {
    kind: np.array([os.fsencode(text) for text in column], np.bytes_)
    for kind, column in zip(KINDS, columns, strict=True)
  }
  store_arrays("contents", directory, arrays)


def _known(directory: Path) -> dict[tuple[bytes, str], Content]:
  """What the cache says of files, by path and state."""
  arrays = load_arrays("contents", directory)
  if arrays is None or not _are_contents(arrays):
    return {}
  paths, states, digests, problems = (arrays[kind].tolist() for kind in KINDS)
  return {
    (path, os.fsdecode(state)): Content(os.fsdecode(digest), os.fsdecode(problem))
    for path, state, digest, problem in zip(paths, states, digests, problems, strict=True)
  }


def _are_contents(arrays: Arrays) -> bool:
  same = arrays.keys() == KINDS.keys() and len({array.shape for array in arrays.values()}) == 1
  return same and all(
    array.ndim == 1 and array.dtype.kind == KINDS[kind] for kind, array in arrays.items()
  )


def _state(path: Path) -> str:
  """What a file and the library that decodes it are known by; empty if the file is not there."""
  try:
    status = path.stat()
  except OSError:
    return ""
  return f"{status.st_size} {status.st_mtime_ns} {PIL.__version__}"


def _read(path: Path) -> Content:
  try:
    data = read_file(path)
  except BadRecordError as error:
    return Content("", printable(error))
  digest = hashlib.sha256(data).hexdigest()[:32]
  try:
    image = open_image(data)
    allow_reduced(image, tuple(max(1, side // REDUCED) for side in image.size))
    load_rgb(image)
  except BadImageError as error:
    return Content(digest, printable(error))
  return Content(digest, "")
