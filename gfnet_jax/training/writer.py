"""The files that a run writes its metrics to."""

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from gfnet_jax.files import to_json, write_atomically


@contextlib.contextmanager
def _not_importable(module: str) -> Iterator[None]:
  """Lets the import of a module fail inside, unless it is there already."""
  if module in sys.modules:
    yield
  else:
    sys.modules[module] = None
    try:
      yield
    finally:
      del sys.modules[module]


# tensorboardX imports PyTorch where that is installed: seconds, for nothing that is used here.
with _not_importable("torch"):
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto.event_pb2 import Event, SessionLog
  from tensorboardX.summary import scalar

logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)  # metrics that are not finite


class MetricWriter:
  """Writes metrics as lines of JSON and as TensorBoard events; only process 0 does.

  metrics.jsonl holds only what follows from config and data, so that a resumed run writes
  the same bytes as an undisturbed one; performance.jsonl holds what depends on the machine.

  Args:
    directory: the work directory.
    step: the run goes on after this step; lines of later steps are removed.
  """

  def __init__(self, directory: Path, step: int):
    self._directory, self._first_step = directory, step
    self._files, self._events = {}, None
    with _full_disk_survived("metrics"):
      self._open()

  def __enter__(self) -> "MetricWriter":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
    """Writes one line to a file and to TensorBoard; a kill after that does not lose it.

    Args:
      kind: "metrics" or "performance", the name of the file.
      step: number of steps done; a step may have several lines.
      values: numbers by name.
    """
    if jax.process_index() != 0:
      return
    with _full_disk_survived(f"{kind} of step {step}"):
      if not self._events:
        self._open()
      self._files[kind].write(to_json({"step": step} | values) + "\n")
      self._files[kind].flush()
      for name, value in values.items():
        self._write_event(step, summary=scalar(name, value))
      self._events.flush()

  def _open(self) -> None:
    if jax.process_index() != 0:
      return
    for kind in ("metrics", "performance"):
      path = self._directory / f"{kind}.jsonl"
      _keep_until(path, self._first_step)
      self._files[kind] = path.open("a")
    events = self._directory / "tensorboard"
    events.mkdir(exist_ok=True)
    # Not through SummaryWriter: its thread dies on a full disk, and its queue then blocks.
    self._events = EventsWriter(str(events / "events"))
    start = SessionLog(status=SessionLog.START)  # hides later events
    self._write_event(self._first_step + 1, session_log=start)

  def _write_event(self, step: int, **content) -> None:
    self._events.write_event(Event(step=step, wall_time=time.time(), **content))

  def close(self) -> None:
    for file in (*self._files.values(), *([self._events] if self._events else [])):
      with contextlib.suppress(OSError):  # said before
        file.close()


@contextlib.contextmanager
def _full_disk_survived(what: str) -> Iterator[None]:
  """Turns a full disk into a warning: it is no reason to end the run."""
  try:
    yield
  except OSError as error:
    print(f"warning: {what} could not be written ({error.strerror})", flush=True)


def _keep_until(path: Path, step: int) -> None:
  """Keeps the lines up to a step; drops those that are damaged or half-written."""
  if path.exists():
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
    write_atomically(path, "".join(kept))


def _step_of(line: str) -> float:
  """The step of a line; infinite if the line is damaged."""
  try:
    return json.loads(line)["step"]
  except (ValueError, KeyError, TypeError):
    return math.inf
