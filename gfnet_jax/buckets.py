"""Directories in object stores: gs://BUCKET/DIR, s3://BUCKET/DIR and whatever else fsspec serves.

Objects are there whole or not at all, but there is neither a rename nor an append, and what a
directory holds is only what the names of objects say. No other module knows fsspec.
"""

import contextlib
import errno
import functools
import logging
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

LIBRARIES = {"gs": ("gcs", "gcsfs"), "gcs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}  # by scheme
ANSWER = 20.0  # seconds that a request of a few bytes may take, with the library's own retries
LATE = 5.0  # seconds of waiting that are worth a line
SLOW_LISTING = 600.0  # seconds that a list of up to millions of objects may take
SLOWEST = 2**20  # bytes per second at which larger ones are still waited for
_last_warning = [-60.0]  # when, in monotonic seconds
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://(.*)", re.DOTALL)
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE)


class UnavailableError(OSError):
  """A store does not answer, or not now: another attempt may succeed."""

  def __str__(self) -> str:
    return str(self.strerror)


class BucketPath:
  """A directory or an object in a store, with the methods of `pathlib.Path` that stores have.

  They raise OSError as those of files do: FileNotFoundError, also for a missing bucket,
  FileExistsError, PermissionError, and `UnavailableError` for all that may pass.

  Args:
    url: such as gs://bucket/run.
  """

  def __init__(self, url: str):
    self._scheme, rest = _URL.fullmatch(url).groups()
    root = "/" if rest.startswith("/") else ""  # file:///mnt/run
    self._parts = tuple(part for part in rest.split("/") if part)
    self._url = f"{self._scheme}://{root}{'/'.join(self._parts)}"

  def __str__(self) -> str:
    return self._url

  def __repr__(self) -> str:
    return f"BucketPath({self._url!r})"

  def __eq__(self, other: object) -> bool:
    return isinstance(other, BucketPath) and self._url == other._url

  def __hash__(self) -> int:
    return hash(self._url)

  def __truediv__(self, name: str) -> "BucketPath":
    return BucketPath(f"{self._url}/{name}")

  @property
  def name(self) -> str:
    """The last part of the path; "" of a scheme alone."""
    return self._parts[-1] if self._parts else ""

  @property
  def suffix(self) -> str:
    """The ending of the name, with its dot; "" if there is none."""
    return PurePosixPath(self.name).suffix

  @property
  def parent(self) -> "BucketPath":
    """The directory above; of a bucket, itself."""
    return self if len(self._parts) < 2 else BucketPath(self._url[: -len(self.name) - 1])

  def is_dir(self) -> bool:
    """Whether there are objects below this path."""
    return self._kind() == "directory"

  def is_file(self) -> bool:
    """Whether there is an object of this name."""
    return self._kind() == "file"

  def exists(self) -> bool:
    """Whether there is an object of this name, or one below it."""
    return self._kind() is not None

  def iterdir(self) -> list["BucketPath"]:
    """What is directly below; nothing if there is no such directory."""
    with contextlib.suppress(FileNotFoundError):
      return [self / name for name in sorted(self._below("ls")) if "/" not in name]
    return []

  def objects(self) -> list[str]:
    """The names, relative to this directory, of all objects below it."""
    with contextlib.suppress(FileNotFoundError):
      return sorted(self._below("find"))
    return []

  def sizes(self) -> dict[str, int]:
    """The sizes in bytes of all objects below this directory, by their relative names."""
    start = self._path.strip("/") + "/"
    found = self._call("find", self._path, detail=True, timeout=SLOW_LISTING)
    sizes = {path.strip("/"): info.get("size") or 0 for path, info in found.items()}
    return {
      path.removeprefix(start): size for path, size in sizes.items() if path.startswith(start)
    }

  def read_bytes(self) -> bytes:
    """The content of the object."""
    return self._call("cat_file", self._path)

  def write_bytes(self, content: bytes) -> None:
    """Replaces the object in one step."""
    self._call("pipe_file", self._path, content)

  def create(self, content: bytes) -> None:
    """Writes the object if there is none; of several processes that try, one succeeds."""
    self._call("pipe_file", self._path, content, mode="create")

  def unlink(self, missing_ok: bool = False) -> None:
    """Removes the object; with missing_ok, there may be none."""
    try:
      self._call("rm_file", self._path)
    except FileNotFoundError:
      if not missing_ok:
        raise

  def copy_to(self, other: "BucketPath") -> None:
    """Copies an object within the store."""
    self._call("cp_file", self._path, other._path)

  def upload(self, file: Path) -> None:
    """Replaces the object by a file."""
    timeout = ANSWER + file.stat().st_size / SLOWEST
    self._call("put_file", str(file), self._path, timeout=timeout)

  def download(self, file: Path) -> None:
    """Writes the object into a file."""
    size = self._call("info", self._path).get("size") or 0
    self._call("get_file", self._path, str(file), timeout=ANSWER + size / SLOWEST)

  @property
  def _path(self) -> str:
    return _file_system(self._scheme)._strip_protocol(self._url)

  def _kind(self) -> str | None:
    try:
      return self._call("info", self._path)["type"]
    except (FileNotFoundError, NotADirectoryError):
      return None

  def _below(self, method: str) -> Iterable[str]:
    """Relative names of what a method lists, without this directory itself."""
    start = self._path.strip("/") + "/"
    found = self._call(method, self._path, detail=False)
    names = (path.strip("/") for path in found)
    return [name.removeprefix(start) for name in names if name.startswith(start)]

  def _call(self, method: str, *args, timeout: float = ANSWER, **kwargs) -> Any:
    file_system, begin = _file_system(self._scheme), time.monotonic()
    try:
      if not file_system.async_impl:
        return getattr(file_system, method)(*args, **kwargs)
      from fsspec.asyn import sync

      call = getattr(file_system, f"_{method}")
      return sync(file_system.loop, call, *args, timeout=timeout, **kwargs)
    except Exception as error:  # every library of a store has kinds of its own
      raise _translate(error, self._url) from error
    finally:
      _warn_if_late(self._url, time.monotonic() - begin, timeout - ANSWER + LATE)


def _warn_if_late(url: str, seconds: float, limit: float) -> None:
  """Says, at most once a minute, that a request took long: the libraries try again in silence."""
  now = time.monotonic()
  if seconds > limit and now - _last_warning[0] > 60:
    _last_warning[0] = now
    print(f"warning: a request to {printable(url)} took {seconds:.0f} s", flush=True)


def _translate(error: Exception, url: str) -> OSError:
  """What a library raised, as an OSError with a reason of one line."""
  for kind, number in ((FileNotFoundError, errno.ENOENT), (FileExistsError, errno.EEXIST)):
    if isinstance(error, kind):
      return kind(number, os.strerror(number), url)
  if isinstance(error, OSError) and error.errno in _LOCAL:
    return error
  text = " ".join(str(getattr(error, "strerror", None) or error).split())
  if isinstance(error, TimeoutError) and not text:
    text = "no answer in time"
  reason = printable(text or type(error).__name__, limit=200)
  forbidden = isinstance(error, PermissionError) or text.startswith("Forbidden")
  if forbidden or getattr(error, "code", None) in (401, 403) or "redential" in text:
    return PermissionError(errno.EACCES, f"no permission: {reason}", url)
  return UnavailableError(errno.EIO, reason, url)


@functools.cache
def _file_system(scheme: str) -> Any:
  """fsspec's for a scheme, without what it would remember of listings.

  Raises:
    UserError: if its library is not installed, or there is none.
  """
  import fsspec

  # Without this, gcsfs asks for every bucket's kind, for which a run may have no right.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # errors are raised, and reported by us
  try:
    own = {"auto_mkdir": True} if scheme == "file" else {}  # which alone has directories
    return fsspec.filesystem(scheme, use_listings_cache=False, **own)
  except ImportError as error:
    extra, library = LIBRARIES.get(scheme, ("", ""))
    advice = f"pip install {library} (or gfnet_jax with its extra {extra!r})"
    raise UserError(
      f"{scheme}:// needs a library that is not installed ({printable(error)}); "
      f"{advice if library else 'install it'}"
    ) from error
  except ValueError as error:  # which fsspec raises for those that it does not know
    raise UserError(
      f"{printable(scheme)}:// is not a kind of store; expected gs:// or s3://, or a directory"
    ) from error


def is_in_store(name: Path | str) -> bool:
  """Whether a user's name is that of something in a store; no store is asked."""
  return bool(_URL.fullmatch(_as_typed(name)))


def as_directory(name: Path | BucketPath | str) -> Path | BucketPath:
  """The directory that a user named: in a store if the name has a scheme, else a local one.

  Raises:
    UserError: for a store whose library is missing, which does not answer or which refuses.
  """
  if isinstance(name, BucketPath):
    return name
  text = _as_typed(name)
  if not is_in_store(text):
    return Path(text)
  path = BucketPath(text)
  if not path.name:
    raise UserError(f"{printable(text)} names no bucket; expected {text}BUCKET/DIRECTORY")
  _check_bucket(path)
  return path


def _as_typed(name: Path | str) -> str:
  """A name as the user gave it: pathlib makes gs:/bucket/run of gs://bucket/run."""
  return re.sub(r"^(gs|gcs|s3):/(?!/)", r"\1://", str(name)) if isinstance(name, Path) else name


def _check_bucket(path: BucketPath) -> None:
  try:
    path._below("ls")
  except FileNotFoundError as error:
    bucket = BucketPath(f"{path._scheme}://{path._parts[0]}")
    if path._scheme in LIBRARIES and not _can_be_listed(bucket):
      raise UserError(f"{bucket} does not exist; create the bucket, or name another") from error
  except PermissionError as error:
    raise UserError(
      f"cannot read {path} ({error.strerror}); log in, or have the right to it granted"
    ) from error
  except OSError as error:
    raise UserError(f"{path} does not answer ({error.strerror}); try again later") from error


def _can_be_listed(bucket: BucketPath) -> bool:
  try:
    bucket._below("ls")
  except FileNotFoundError:
    return False
  except OSError:  # with a right to some of its objects only, for example
    return True
  return True
