"""Notices a process that hangs or died, so that the others do not wait for ever."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import jax

from gfnet_jax.files import write_atomically

BEAT = 1.0  # seconds between two looks
FIRST_STEP = 10  # times as long may pass until the first step is compiled and done


class Watchdog:
  """A context in which this process ends with a message if the run does not go on.

  Every process leaves a heartbeat and its progress in a file of the shared work
  directory and reads those of the others. A single process watches only itself. What an
  earlier run left there is overwritten within seconds.

  Args:
    directory: for the files; shared by all processes.
    timeout: seconds without progress that are taken for a stall; 0 never ends anything.
  """

  def __init__(self, directory: Path, timeout: float):
    self._directory, self._timeout = directory, timeout
    self._progress, self._beats, self._stopped = 0, 0, threading.Event()
    self._warned = False
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

  def __enter__(self) -> "Watchdog":
    if self._timeout:
      self._directory.mkdir(parents=True, exist_ok=True)
      self._write()
      self._thread.start()
    return self

  def __exit__(self, error: type[BaseException] | None, *_) -> None:
    """Ends the watch; after an error the others notice that this process is gone."""
    self._stopped.set()
    if self._thread.is_alive():
      self._thread.join()
      if error is None:
        self._write(finished=True)

  def advance(self) -> None:
    """To be called whenever the run has done something: a step, a batch of evaluation."""
    self._progress += 1

  def look_for_the_dead(self, error: Exception) -> None:
    """After an error that the end of another process may explain, waits until it is named."""
    if self._thread.is_alive() and jax.process_count() > 1:
      print(f"warning: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
      self._thread.join(2 * self._timeout)

  def _path(self, process: int) -> Path:
    return self._directory / f"process-{process}.json"

  def _watch(self) -> None:
    processes = range(jax.process_count())
    last = {process: _Sighting(time.monotonic()) for process in processes}
    while not self._stopped.wait(BEAT):
      self._beats += 1
      self._write()
      now = time.monotonic()
      for process in processes:
        last[process].update(self._read(process), now)
      running = [process for process in processes if not last[process].finished]
      for process in running:
        if now - last[process].beat_time > self._timeout:
          self._end(f"process {process} gave no sign of life for {self._timeout:.0f} s")
      begun = all(last[process].progress for process in running)
      limit = self._timeout if begun else FIRST_STEP * self._timeout
      if running and all(now - last[p].progress_time > limit for p in running):
        behind = min(running, key=lambda process: last[process].progress)
        self._end(f"process {behind} made no progress for {limit:.0f} s")

  def _write(self, finished: bool = False) -> None:
    content = {"beats": self._beats, "progress": self._progress, "finished": finished}
    try:
      write_atomically(self._path(jax.process_index()), json.dumps(content))
    except OSError as error:  # a full disk is no reason to end the run
      if not self._warned:
        print(f"warning: heartbeats not written ({error.strerror})", file=sys.stderr, flush=True)
      self._warned = True

  def _read(self, process: int) -> dict:
    try:
      return json.loads(self._path(process).read_text())
    except (OSError, ValueError):
      return {}

  def _end(self, reason: str) -> None:
    message = f"error: {reason} (stall_timeout); start the run again to go on from its checkpoint"
    print(message, file=sys.stderr, flush=True)
    os._exit(3)  # the main thread may be waiting in a collective for ever


class _Sighting:
  """What was last seen of a process, and when it last changed."""

  def __init__(self, now: float):
    self.beats = self.progress = 0
    self.beat_time = self.progress_time = now
    self.finished = False

  def update(self, heartbeat: dict, now: float) -> None:
    if not heartbeat:  # not there yet, or unreadable for a moment
      return
    if heartbeat["beats"] != self.beats:
      self.beats, self.beat_time = heartbeat["beats"], now
    if heartbeat["progress"] != self.progress:
      self.progress, self.progress_time = heartbeat["progress"], now
    self.finished = heartbeat["finished"]
