"""What a run writes besides its checkpoints, in a store: written locally and copied from there."""

import contextlib
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax

from gfnet_jax.buckets import BucketPath
from gfnet_jax.distributed import together
from gfnet_jax.errors import UserError
from gfnet_jax.transfers import for_each

PERIOD = 5.0  # seconds between two looks at what has changed
RATE = 2**20  # bytes per second that a file which grows may take, as it is sent whole
# Those that the lock and the checkpoints write there themselves.
ELSEWHERE = ("lock.json", "heartbeats", "checkpoints", "nonfinite")


class Mirror:
  """A context in which a local directory's files appear in the work directory of a run.

  A local work directory is that directory, and nothing is copied. In a store there is no
  append: a file that has grown is sent as a whole, in the background, so that no step waits
  for a network. A kill loses what was written in the last seconds; `flush` before a
  checkpoint is complete makes sure that it is not what came before the checkpoint.
  Only process 0 copies.

  Args:
    home: the work directory.

  Raises:
    UserError: on entering, if its files cannot be read; on leaving, if the last ones cannot be
      written.
  """

  def __init__(self, home: Path | BucketPath):
    self._scratch = None
    if isinstance(home, BucketPath):
      self._scratch = tempfile.TemporaryDirectory(prefix="gfnet_jax-", ignore_cleanup_errors=True)
    self.directory = Path(self._scratch.name) if self._scratch else home
    self.home, self._sent = home, {}
    self._active = bool(self._scratch) and jax.process_index() == 0
    self._sending, self._stopped, self._warned = threading.Lock(), threading.Event(), False
    self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

  def __enter__(self) -> "Mirror":
    together(self._fetch)
    if self._active:
      self._thread.start()
    return self

  def __exit__(self, kind: type[BaseException] | None, *_) -> None:
    self._stopped.set()
    try:
      if self._active and (kind is None or issubclass(kind, Exception)):
        self._thread.join()
        if kind is None:
          self.flush()
        else:  # one attempt: what went wrong first says more
          with contextlib.suppress(OSError):
            self._send_changed()
    except OSError as error:
      raise UserError(
        f"the last metrics could not be written to {self.home} ({error.strerror}); the same "
        "command writes them again from the newest checkpoint on"
      ) from error
    finally:
      if self._scratch:
        self._scratch.cleanup()

  def flush(self) -> None:
    """Copies what has changed; waits while the store is away.

    Raises:
      OSError: if it stays away.
    """
    if self._active:
      with self._sending:
        changed = self._changed()
        for_each(changed, lambda name: self._send(name, changed[name]))

  def _fetch(self) -> None:
    """What an earlier attempt of the run has left and this one continues to write."""
    if not self._active:
      return
    try:
      for path in self.home.iterdir():
        if path.name not in ELSEWHERE and path.is_file():
          path.download(self.directory / path.name)
    except OSError as error:
      raise UserError(f"cannot read {self.home} ({error.strerror}); try again later") from error
    self._sent = self._changed()

  def _work(self) -> None:
    while not self._stopped.wait(PERIOD):
      try:
        self._send_changed(sparingly=True)
        self._warned = False
      except OSError as error:
        if not self._warned:
          print(
            f"warning: metrics not written to {self.home} ({error.strerror}); trying again",
            flush=True,
          )
        self._warned = True

  def _send_changed(self, sparingly: bool = False) -> None:
    with self._sending:
      for name, state in self._changed(sparingly).items():
        self._send(name, state)

  def _changed(self, sparingly: bool = False) -> dict[str, "_State"]:
    """The files that the store does not have as they are; sparingly: those whose turn it is."""
    found = {}
    for path in self.directory.rglob("*"):
      name = path.relative_to(self.directory).as_posix()
      with contextlib.suppress(FileNotFoundError):  # removed meanwhile
        if path.suffix == ".tmp" or not path.is_file():
          continue
        status = path.stat()
        state = _State(status.st_size, status.st_mtime_ns, time.monotonic())
        before = self._sent.get(name)
        waits = sparingly and before and state.seen < before.seen + before.size / RATE
        if before is None or (before.changed, before.size) != (state.changed, state.size):
          found |= {} if waits else {name: state}
    return found

  def _send(self, name: str, state: "_State") -> None:
    with contextlib.suppress(FileNotFoundError):  # as above
      (self.home / name).upload(self.directory / name)
    self._sent[name] = state


class _State(NamedTuple):
  """Of a file: its size in bytes, when it was changed, and when it was looked at (seconds)."""

  size: int
  changed: int
  seen: float
