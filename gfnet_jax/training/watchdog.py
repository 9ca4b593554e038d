"""Notices a process that hangs or has died, so that the others do not wait forever."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax

from gfnet_jax.files import write_atomically
from gfnet_jax.training.heartbeat import BEAT, BUCKET_BEAT, read_heartbeat, this_process
from gfnet_jax.training.lock import Lock

FIRST_STEP = 10  # times as long may pass until the first step is compiled and done
# Beginnings of jax's messages for what no other process can have caused.
OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


class Watchdog:
  """A context in which this process ends with a message if the run makes no progress.

  Every process writes a heartbeat and its progress to a file in the shared work
  directory, and reads those of the others. A single process watches only itself. At every
  beat it also looks whether the work directory still is the run's.

  Args:
    lock: of the work directory, which is shared by all processes.
    timeout: seconds without progress after which a run counts as stalled; 0 for never.
  """

  def __init__(self, lock: Lock, timeout: float):
    self._lock, self._directory, self._timeout = lock, lock.heartbeats, timeout
    self._process = this_process()
    self._progress, self._stopped, self._warned = 0, threading.Event(), False
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

  def __enter__(self) -> "Watchdog":
    now = time.monotonic()  # heartbeats that are there already come from an earlier run
    self._last = {p: _Sighting(self._read(p), now) for p in range(jax.process_count())}
    self._write()
    self._thread.start()
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, _: object
  ) -> None:
    """Stops watching; after an error the other processes notice that this one is gone."""
    if isinstance(error, jax.errors.JaxRuntimeError):
      self._look_for_the_dead(error)
    self._stopped.set()
    if self._thread.is_alive():
      self._thread.join()
      if kind is None:
        self._write(finished=True)

  def advance(self) -> None:
    """To be called whenever the run has done something: a step, a batch of evaluation."""
    self._progress += 1

  def _look_for_the_dead(self, error: Exception) -> None:
    """Waits, after an error that a dead process may have caused, until that is named."""
    if str(error).startswith(OWN_FAULTS):
      return
    if self._timeout and self._thread.is_alive() and jax.process_count() > 1:
      print(f"warning: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
      self._thread.join(2 * self._timeout)

  def _path(self, process: int) -> Path:
    return self._directory / f"process-{process}.json"

  def _watch(self) -> None:
    last, signalled = self._last, False
    while not self._stopped.wait(BEAT if isinstance(self._directory, Path) else BUCKET_BEAT):
      self._lock.look()
      if self._lock.lost and jax.process_count() > 1 and not signalled:
        signalled = True
        os.kill(os.getpid(), signal.SIGTERM)  # all stop after the same step, and see it, too
      own, written = self._write()
      if not self._timeout:
        continue
      now = time.monotonic()
      for process, sighting in last.items():
        sighting.update(own if process == jax.process_index() else self._read(process), now)
        if not written:  # perhaps no process can write
          sighting.beat_time = now
      running = [process for process in last if not last[process].finished]
      for process in running:
        if now - last[process].beat_time > self._timeout:
          self._end(f"process {process} gave no sign of life for {self._timeout:.0f} s")
      begun = all(last[process].progress for process in running)
      limit = self._timeout if begun else FIRST_STEP * self._timeout
      if running and all(now - last[p].progress_time > limit for p in running):
        behind = min(running, key=lambda process: last[process].progress)
        self._end(f"process {behind} made no progress for {limit:.0f} s")

  def _write(self, finished: bool = False) -> tuple[dict, bool]:
    """Writes a heartbeat; returns it, and whether that succeeded."""
    heartbeat = {"beat": time.time_ns(), "progress": self._progress, "finished": finished}
    heartbeat |= {"run": self._lock.run, **self._process._asdict()}
    if self._lock.lost:  # the file may be another run's now
      return heartbeat, False
    try:
      if isinstance(self._directory, Path):  # not its parent, if that was moved away
        self._directory.mkdir(exist_ok=True)
      write_atomically(self._path(jax.process_index()), json.dumps(heartbeat))
    except OSError as error:  # a full disk is no reason to end the run
      gone = isinstance(error, FileNotFoundError)  # which the lock will say
      if not self._warned and not gone:
        print(
          f"warning: heartbeats not written ({error.strerror}); others may take this run for dead",
          file=sys.stderr,
          flush=True,
        )
      self._warned = self._warned or not gone
      return heartbeat, False
    return heartbeat, True

  def _read(self, process: int) -> dict:
    return read_heartbeat(self._path(process))

  def _end(self, reason: str) -> None:
    message = (
      f"error: {reason} (stall_timeout); the same command continues from the newest checkpoint"
    )
    print(message, file=sys.stderr, flush=True)
    os._exit(3)  # the main thread may be waiting forever in a collective


class _Sighting:
  """What was last seen of a process, and when it last changed.

  Args:
    before: the heartbeat that an earlier run left; {} if none.
    now: seconds.
  """

  def __init__(self, before: dict, now: float):
    self.beat, self.progress = before.get("beat"), 0
    self.beat_time = self.progress_time = now
    self.finished = False

  def update(self, heartbeat: dict, now: float) -> None:
    # Not there yet, unreadable for a moment, or nothing new.
    if not heartbeat or heartbeat["beat"] == self.beat:
      return
    self.beat, self.beat_time = heartbeat["beat"], now
    if heartbeat["progress"] != self.progress:
      self.progress, self.progress_time = heartbeat["progress"], now
    self.finished = heartbeat["finished"]
