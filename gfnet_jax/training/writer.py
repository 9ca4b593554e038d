"""The files in which a run leaves its metrics."""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from gfnet_jax.files import write_atomically


class MetricWriter:
  """Writes metrics as lines of JSON and as TensorBoard events; only process 0 does.

  metrics.jsonl holds only what the run determines, so that a resumed run leaves the
  very file of an undisturbed one; performance.jsonl holds what the machine determines.

  Args:
    directory: the work directory.
    step: lines of later steps are removed, because the run goes on from here.
  """

  def __init__(self, directory: Path, step: int):
    self._files, self._events = {}, None
    if jax.process_index() != 0:
      return
    for kind in ("metrics", "performance"):
      path = directory / f"{kind}.jsonl"
      _keep_until(path, step)
      self._files[kind] = path.open("a")
    events = directory / "tensorboard"
    events.mkdir(exist_ok=True)
    # Not through SummaryWriter: its thread dies on a full disk, and its queue then blocks.
    self._events = EventsWriter(str(events / "events"))
    self._write_event(step + 1, session_log=SessionLog(status=SessionLog.START))  # hides later ones

  def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
    """Writes one line to `kind`.jsonl, durable against a kill, and to TensorBoard."""
    if jax.process_index() != 0:
      return
    try:
      self._files[kind].write(json.dumps({"step": step, **values}) + "\n")
      self._files[kind].flush()
      for name, value in values.items():
        self._write_event(step, summary=scalar(name, value))
      self._events.flush()
    except OSError as error:  # a full disk is no reason to end the run
      print(f"warning: {kind} of step {step} could not be written ({error.strerror})", flush=True)

  def _write_event(self, step: int, **content) -> None:
    self._events.write_event(Event(step=step, wall_time=time.time(), **content))

  def close(self) -> None:
    for file in (*self._files.values(), *([self._events] if self._events else [])):
      with contextlib.suppress(OSError):  # as above
        file.close()


def _keep_until(path: Path, step: int) -> None:
  """Removes the lines of later steps, and a line that a kill left half-written."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text().splitlines(keepends=True):
    if not line.endswith("\n") or _step_of(line) > step:
      break
    kept.append(line)
  write_atomically(path, "".join(kept))


def _step_of(line: str) -> float:
  """The step of a line; infinite if the line is damaged."""
  try:
    return json.loads(line)["step"]
  except (ValueError, KeyError, TypeError):
    return math.inf
