"""The files that a run writes its metrics to."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import jax

from gfnet_jax.errors import UserError
from gfnet_jax.files import to_json, write_atomically
from gfnet_jax.metric_lines import describe_damaged, read_metric_lines


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
  from tensorboardX.proto.summary_pb2 import Summary
  from tensorboardX.summary import scalar

logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)  # metrics that are not finite

# Beginnings of names, which TensorBoard shows as groups; the first that fits.
GROUPS = ("eval_ema_", "eval_", "train_")


Outcome = Literal["finished", "stopped", "failed"]  # stopped: by a signal, to be continued later


class Tracker(Protocol):
  """What else receives the metrics: a library for experiments, see trackers.py.

  Attributes:
    outcome: what the run comes to, unless an error ends it.
  """

  outcome: Outcome

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Takes numbers by the names that TensorBoard shows; raises nothing, and does not wait."""


class MetricWriter:
  """Writes metrics as lines of JSON and as TensorBoard events; only process 0 does.

  metrics.jsonl holds only what follows from config and data, so that a resumed run writes
  the same bytes as an undisturbed one; performance.jsonl holds what depends on the machine.
  TensorBoard groups the metrics by the beginnings of their names.

  Args:
    directory: the work directory.
    step: the run continues after this step; lines of later steps are removed, and so are
      those that are damaged, with a warning.
    trackers: receive the same numbers.
  """

  def __init__(self, directory: Path, step: int, trackers: Sequence[Tracker] = ()):
    self._directory, self._first_step, self._trackers = directory, step, trackers
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
    for tracker in self._trackers:
      tracker.write(step, {_tag(kind, name): value for name, value in values.items()})
    with _full_disk_survived(f"{kind} of step {step}"):
      if not self._events:
        self._open()
      self._files[kind].write(to_json({"step": step} | values) + "\n")
      self._files[kind].flush()
      for name, value in values.items():
        self._write_event(step, summary=scalar(_tag(kind, name), value))
      self._events.flush()

  def write_image(self, step: int, tag: str, png: bytes, size: tuple[int, int]) -> None:
    """Writes a picture to TensorBoard.

    Args:
      step: number of steps done.
      tag: its name there.
      png: the file, of RGB.
      size: (width, height), in pixels.
    """
    if jax.process_index() != 0:
      return
    with _full_disk_survived(f"{tag} of step {step}"):
      if not self._events:
        self._open()
      image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=png)
      self._write_event(step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))
      self._events.flush()

  def _open(self) -> None:
    if jax.process_index() != 0:
      return
    paths = {kind: self._directory / f"{kind}.jsonl" for kind in ("metrics", "performance")}
    for path in paths.values():
      if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file that metrics can be written to; move it away")
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
    """Closes all files; what is on a full disk then is lost in silence, as it was named before."""
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
  """Keeps the lines up to a step, and drops those that are damaged: they are named."""
  if not path.exists():
    return
  kept, damaged = [], []
  for line in read_metric_lines(path):
    if not line.values:
      damaged += [line.number] if line.whole else []
    elif line.values["step"] <= step:
      kept.append(line.text)
  if damaged:
    print(f"warning: {describe_damaged(damaged, path.name)}, and is dropped", flush=True)
  write_atomically(path, "".join(kept))
