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

from gfnet_jax.errors import UserError
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


LONGEST_LINE = 2**20  # bytes; a longer one is read in parts, none of which is a line
# Beginnings of names, which TensorBoard shows as groups; the first that fits.
GROUPS = ("eval_ema_", "eval_", "train_")


class MetricWriter:
  """Writes metrics as lines of JSON and as TensorBoard events; only process 0 does.

  metrics.jsonl holds only what follows from config and data, so that a resumed run writes
  the same bytes as an undisturbed one; performance.jsonl holds what depends on the machine.
  TensorBoard groups the metrics by the beginnings of their names.

  Args:
    directory: the work directory.
    step: the run goes on after this step; lines of later steps are removed, and so are
      those that are damaged, with a warning.
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
        self._write_event(step, summary=scalar(_tag(kind, name), value))
      self._events.flush()

  def _open(self) -> None:
    if jax.process_index() != 0:
      return
    paths = {kind: self._directory / f"{kind}.jsonl" for kind in ("metrics", "performance")}
    for path in paths.values():
      if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file that metrics could be written to; move it away")
    self.close()  # what an attempt on a full disk has opened
    for kind, path in paths.items():
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
    # EventsWriter.close() leaves its file open if the disk is full; the file's own does not.
    events = [self._events, self._events._py_recordio_writer] if self._events else []
    for file in (*self._files.values(), *events):
      with contextlib.suppress(OSError):  # said before
        file.close()


def _tag(kind: str, name: str) -> str:
  """The name of a metric in TensorBoard, with its group: eval_ema/top1, performance/memory_gib."""
  if kind == "performance":
    return f"performance/{name}"
  group = next((group for group in GROUPS if name.startswith(group)), "")
  return f"{group.removesuffix('_') or 'train'}/{name.removeprefix(group)}"


@contextlib.contextmanager
def _full_disk_survived(what: str) -> Iterator[None]:
  """Turns a full disk into a warning: it is no reason to end the run."""
  try:
    yield
  except OSError as error:
    print(f"warning: {what} could not be written ({error.strerror})", flush=True)


def _keep_until(path: Path, step: int) -> None:
  """Keeps the lines up to a step, and drops those that are damaged: they are named.

  Half a line at the end is what a kill leaves, and not named.
  """
  if not path.exists():
    return
  kept, damaged, number = [], [], 1
  with path.open("rb") as file:
    while line := file.readline(LONGEST_LINE):
      whole = line.endswith(b"\n")
      found = _step_of(line)
      if found is None:
        damaged += [number] if whole else []
      elif found <= step:
        kept.append(line.decode())
      number += whole
  if damaged:
    names = ", ".join(map(str, damaged[:5])) + ", ..." * (len(damaged) > 5)
    print(f"warning: line {names} of {path.name} cannot be read, and is dropped", flush=True)
  write_atomically(path, "".join(kept))


def _step_of(line: bytes) -> int | None:
  """The step of a line as `MetricWriter` writes it; None for any other."""
  try:
    text = line.decode()
    values = json.loads(text)
    written = json.dumps(values) + "\n" == text  # not a blank more
  except (ValueError, RecursionError):  # no UTF-8, no JSON, or thousands of brackets
    return None
  if not written or not isinstance(values, dict) or type(values.get("step")) is not int:
    return None
  return values["step"] if all(map(_is_written, values.values())) else None


def _is_written(value: Any) -> bool:
  """Whether `_finite` lets a value pass."""
  return value is None or (type(value) in (int, float) and math.isfinite(value))
