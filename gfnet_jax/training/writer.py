"""The files in which a run leaves its metrics."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import tensorboardX

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
    self._events = tensorboardX.SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

  def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
    """Writes one line to `kind`.jsonl, durable against a kill, and to TensorBoard."""
    if jax.process_index() != 0:
      return
    try:
      self._files[kind].write(json.dumps({"step": step, **values}) + "\n")
      self._files[kind].flush()
      for name, value in values.items():
        self._events.add_scalar(name, value, step)
    except OSError as error:  # a full disk is no reason to end the run
      print(f"warning: {kind} of step {step} could not be written ({error.strerror})", flush=True)

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
