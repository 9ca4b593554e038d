"""One run at a time in a work directory, whatever machines its processes are on."""

import json
import time
import uuid
from pathlib import Path
from typing import Any

import jax

from gfnet_jax.buckets import BucketPath
from gfnet_jax.distributed import exchange, together
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable
from gfnet_jax.training import lock_file
from gfnet_jax.training.heartbeat import (
  BEAT,
  BUCKET_BEAT,
  is_running,
  process_in,
  read_entry,
  read_heartbeat,
  this_process,
)

WATCH = 30  # beats without a sign of life after which a run of another machine is over
_held = set()  # the runs of this very process, which outlives them in a notebook
MISSES = 3  # looks in a row at a directory without the lock after which it is gone


class Lock:
  """A context in which a work directory belongs to this run alone.

  Its first process creates `lock.json`, which says who it is, and removes it at the end. A
  lock that a killed run left is taken over: if its processes do not run any more or, where
  that cannot be seen from here, if neither lock nor heartbeats change for WATCH beats.
  `lock_file` says how one of many processes gets it.

  Args:
    workdir: exists, and is shared by all processes.

  Raises:
    UserError: on entering, if another run uses the directory; on leaving, if the directory
      is no longer this run's.
  """

  def __init__(self, workdir: Path | BucketPath):
    self.run = ""  # of all its processes; "" before entering
    self._beat = BEAT if isinstance(workdir, Path) else BUCKET_BEAT
    self._workdir, self._path = workdir, workdir / "lock.json"
    self.heartbeats = workdir / "heartbeats"
    self._misses, self._lost = 0, ""

  def __enter__(self) -> "Lock":
    run = exchange(uuid.uuid4().hex)[0]
    self.run = run
    _held.add(run)
    try:
      together(lambda: self._acquire(run))
      together(self._see)
    except BaseException:  # an interrupt, too: nobody will leave what was not entered
      _held.discard(run)
      self._release()
      raise
    return self

  def __exit__(self, kind: type[BaseException] | None, *_) -> None:
    """Also explains an error that comes from the directory's being gone."""
    _held.discard(self.run)
    if kind is None or issubclass(kind, Exception):  # an interrupt does not wait
      self.confirm()
    if kind is None or jax.process_count() == 1:  # else other processes may still be running
      self._release()

  @property
  def lost(self) -> str:
    """Why the directory is no longer this run's; "" while it is."""
    return self._lost

  def look(self) -> None:
    """Looks whether the directory still is this run's."""
    if not self.run:
      return
    entry = read_entry(self._path)
    if entry.get("run") == self.run:
      self._misses = 0
    elif "run" in entry:
      self._lost = (
        f"{self._workdir} was taken over by another run ({_describe(entry)}) while this one gave "
        "no sign of life; this one ends, and that one continues from the newest checkpoint"
      )
    elif lock_file.is_missing(self._path) and not self._is_over():
      self._misses += 1
      if self._misses >= MISSES:
        self._lost = (
          f"{self._workdir} was moved or removed during the run ({self._path.name} is not there "
          "any more); the run ends; to continue it, set --workdir to where its checkpoints are now"
        )

  def check(self) -> None:
    """Raises UserError if the last look found that the directory is no longer this run's."""
    if self._lost:
      raise UserError(self._lost)

  def confirm(self) -> None:
    """Looks until it is clear, then as `check`; takes no time while all is well."""
    self.look()
    while self._misses and not self._lost:
      time.sleep(self._beat)
      self.look()
    self.check()

  def confirm_at_once(self) -> None:
    """As `confirm` on a disk; in a store as `check`, since no step is to wait for a network."""
    if isinstance(self._path, Path):
      self.confirm()
    self.check()

  def _acquire(self, run: str) -> None:
    """Creates the lock, or takes over that of a run that is over; only process 0 does.

    Raises:
      UserError: if another run holds it, or the directory cannot be written.
    """
    if jax.process_index() != 0:
      return
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    text = json.dumps({"run": run, "since": since, **this_process()._asdict()}, indent=1) + "\n"
    try:
      if lock_file.create(self._path, text):
        return
      holder = self._holder_that_is_over()
      if (other := lock_file.take_over(self._path, holder, text, run)) is not None:
        raise self._in_use(other)
    except OSError as error:
      raise UserError(
        f"cannot write {self._path} ({error.strerror}); make room, or remove it if no other run "
        "uses the directory"
      ) from error

  def _release(self) -> None:
    if read_entry(self._path).get("run") != self.run:
      return
    if jax.process_count() == 1:
      lock_file.remove_directory(self.heartbeats)
    if jax.process_index() == 0:
      self._path.unlink(missing_ok=True)

  def _holder_that_is_over(self) -> dict[str, Any]:
    """What the lock says.

    Raises:
      UserError: if its run still is under way.
    """
    holder = read_entry(self._path)
    entries = [holder, *self._heartbeats(holder)]
    states = [self._state(entry) for entry in entries]
    if set(states) == {False}:
      return holder
    if True in states:
      raise self._in_use(entries[states.index(True)])
    print(
      f"{printable(self._workdir)} was in use by {_describe(holder)}; looking for "
      f"{WATCH * self._beat:.0f} s whether it still is",
      flush=True,
    )
    if self._shows_life(holder):
      raise self._in_use(read_entry(self._path) or holder)
    return holder

  def _in_use(self, holder: dict[str, Any]) -> UserError:
    return UserError(
      f"{self._workdir} is in use by another run ({_describe(holder)}); wait for its end or stop "
      "it, or set another --workdir"
    )

  def _state(self, entry: dict[str, Any]) -> bool | None:
    """Whether the process of a lock or heartbeat runs; None if it cannot be told."""
    process = process_in(entry)
    if process == this_process():
      return entry.get("run") in _held
    return is_running(process) if process else None

  def _heartbeats(self, holder: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the processes of a run that have not finished; of all runs if it is unknown."""
    heartbeats = self.heartbeats
    paths = sorted(heartbeats.iterdir(), key=str) if heartbeats.is_dir() else ()
    entries = [read_heartbeat(path) for path in paths if path.suffix == ".json"]
    run = holder.get("run")
    return [x for x in entries if x and not x["finished"] and run in (None, x.get("run"))]

  def _shows_life(self, holder: dict[str, Any]) -> bool:
    """Whether, while one watches, a heartbeat changes or another run takes the lock."""
    before = {entry["beat"] for entry in self._heartbeats(holder)}
    for _ in range(WATCH):
      time.sleep(self._beat)
      found = read_entry(self._path)
      if found and found != holder:
        return True
      if lock_file.is_missing(self._path):  # it ended properly
        return False
      if {entry["beat"] for entry in self._heartbeats(holder)} - before:
        return True
    return False

  def _is_over(self) -> bool:
    """Whether process 0 has finished the run, and removed the lock, before this process."""
    first = read_heartbeat(self.heartbeats / "process-0.json")
    return bool(first) and first["finished"] and first.get("run") == self.run

  def _see(self) -> None:
    """Waits until this process sees the lock, which others see later on some network mounts."""
    for _ in range(WATCH):
      if read_entry(self._path).get("run") == self.run:
        return
      time.sleep(self._beat)
    raise UserError(
      f"{self._path} of process 0 is not seen here; give all processes the same --workdir, in a "
      "directory that they share"
    )


def _describe(entry: dict[str, Any]) -> str:
  process = process_in(entry)
  since = f", since {entry['since']}" if isinstance(entry.get("since"), str) else ""
  return printable(f"{process}{since}") if process else "an unknown process"
