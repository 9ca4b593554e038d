"""Libraries that collect experiments, as further receivers of a run's metrics: wandb, MLflow.

A new one is a class and a line in `TRACKERS`, and a field of that name in `config.trackers`.
Its constructor takes (config, workdir, run_id): the run's config, its work directory, and the id
by which the library knows the run, None for a new one. It has `run_id` as an attribute,
`write(step, values)` as in `writer.Tracker`, and `close(outcome)`; each may raise anything, and
wait.
What the library wants to know besides (its server, project, mode), it takes from its own
environment variables.
"""

import contextlib
import importlib.util
import json
import math
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections

from gfnet_jax.config_files import run_name
from gfnet_jax.distributed import together
from gfnet_jax.errors import UserError
from gfnet_jax.files import to_json, write_atomically
from gfnet_jax.text import printable
from gfnet_jax.training.config_rules import flatten
from gfnet_jax.training.writer import Outcome

IDS = "trackers.json"  # in the work directory: by which a continued run is known
LAST_SECONDS = 30.0  # that the end of a run waits for a server


class Wandb:
  """Weights & Biases; WANDB_MODE=offline keeps everything in WORKDIR/wandb."""

  def __init__(self, config: ml_collections.ConfigDict, workdir: Path, run_id: str | None):
    import wandb

    self._run = wandb.init(
      id=run_id,
      name=workdir.name,
      dir=str(workdir),
      config=config.to_dict(),
      resume="allow",
      settings=wandb.Settings(console="off", silent=True, disable_git=True),
    )
    self._run.define_metric("*", step_metric="step")  # steps that are written again are taken
    self.run_id = self._run.id

  def write(self, step: int, values: dict[str, float]) -> None:
    """Sends the metrics of a step, by name, to Weights & Biases."""
    self._run.log({"step": step} | values)

  def close(self, outcome: Outcome) -> None:
    """Ends the run there; one that was stopped is shown as preempted."""
    if outcome == "stopped":
      self._run.mark_preempting()
    self._run.finish(exit_code=0 if outcome == "finished" else 1)


class MLflow:
  """MLflow; MLFLOW_TRACKING_URI names a server, or a file such as sqlite:///runs.db."""

  def __init__(self, config: ml_collections.ConfigDict, workdir: Path, run_id: str | None):
    import mlflow

    self._client, self._metric = mlflow.MlflowClient(), mlflow.entities.Metric
    if run_id is None:
      experiment = mlflow.set_experiment(run_name(config))
      run = self._client.create_run(experiment.experiment_id, run_name=workdir.name)
      run_id = run.info.run_id
      params = [
        mlflow.entities.Param(name, str(value)) for name, value in flatten(config.to_dict()).items()
      ]
      self._client.log_batch(run_id, params=params)
    else:
      self._client.update_run(run_id, status="RUNNING")
    self.run_id = run_id

  def write(self, step: int, values: dict[str, float]) -> None:
    """Sends the metrics of a step, by name, to MLflow."""
    now = int(time.time() * 1000)
    metrics = [self._metric(name, value, now, step) for name, value in values.items()]
    self._client.log_batch(self.run_id, metrics=metrics)

  def close(self, outcome: Outcome) -> None:
    """Ends the run there; one that was stopped is shown as killed."""
    status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[outcome]
    self._client.set_terminated(self.run_id, status)


TRACKERS = {"wandb": Wandb, "mlflow": MLflow}


class BackgroundTracker:
  """A tracker that never stops its run: written to in a thread, and let go when it fails.

  Args:
    name: for the warning.
    tracker: of `TRACKERS`.

  Attributes:
    outcome: what the run comes to unless an error ends it: "finished", or "stopped" once it is.
  """

  outcome: Outcome = "finished"

  def __init__(self, name: str, tracker: Any):
    self._name, self._tracker, self._queue = name, tracker, queue.SimpleQueue()
    self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
    self._thread.start()

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Hands over numbers by name; those that are not finite are left out."""
    if self._thread.is_alive():
      self._queue.put((step, {n: float(v) for n, v in values.items() if math.isfinite(v)}))

  def close(self, *, failed: bool) -> None:
    """Waits until all is written, but only so long; failed: whether an error ended the run."""
    if failed:
      self.outcome = "failed"
    self._queue.put(None)
    self._thread.join(LAST_SECONDS)
    if self._thread.is_alive():
      print(f"warning: {self._name} did not take the last metrics in time; {_KEPT}", flush=True)

  def _work(self) -> None:
    try:
      while item := self._queue.get():
        self._tracker.write(*item)
      self._tracker.close(self.outcome)
    except Exception as error:  # whatever a library, its server or the network comes up with
      print(
        f"warning: {self._name} failed ({_reason(error)}) and gets no more metrics; {_KEPT}",
        flush=True,
      )


_KEPT = "metrics.jsonl and TensorBoard have them all"


def check_trackers(config: ml_collections.ConfigDict) -> None:
  """Raises UserError if a library that the config asks for is not installed."""
  for name in TRACKERS:
    spec = importlib.util.find_spec(name) if config.trackers[name] else None
    if config.trackers[name] and not (spec and spec.origin):  # a folder wandb/ has a spec as well
      raise UserError(
        f"trackers.{name} is True, but {name} is not installed; pip install {name} (or "
        f"gfnet_jax with its extra {name!r}), or set it to False"
      )


@contextlib.contextmanager
def open_trackers(
  config: ml_collections.ConfigDict, workdir: Path, *, fresh: bool
) -> Iterator[list[BackgroundTracker]]:
  """A context with the trackers that the config asks for; only process 0 has any.

  Args:
    config: of the run.
    workdir: its work directory; a run that begins there again or is continued is known by its ids.
    fresh: whether the run is new. What cannot be begun then is an error, later a warning.

  Raises:
    UserError: if a library refuses a new run: without a login or a server, for example.
  """
  with contextlib.ExitStack() as stack:
    first = jax.process_index() == 0
    yield together(lambda: _begin(config, workdir, fresh, stack) if first else [])


def _begin(
  config: ml_collections.ConfigDict, workdir: Path, fresh: bool, stack: contextlib.ExitStack
) -> list[BackgroundTracker]:
  """The trackers of process 0, which the end of a context is to close."""
  known = _read_ids(workdir / IDS)
  ids, trackers = dict(known), []
  for name, kind in TRACKERS.items():
    if not config.trackers[name]:
      continue
    try:
      tracker = kind(config, workdir, ids.get(name))
    except Exception as error:  # whatever a library, its server or the network comes up with
      if fresh:
        other = f", or remove {workdir / IDS} for a new run there" if name in ids else ""
        raise UserError(
          f"{name} cannot begin: {_reason(error)}; set it up (docs/tracking.md), or run with "
          f"--config.trackers.{name}=False{other}"
        ) from error
      print(f"warning: {name} cannot continue ({_reason(error)}); {_KEPT}", flush=True)
      continue
    ids[name] = tracker.run_id
    begun = BackgroundTracker(name, tracker)
    stack.push(lambda error, *_, begun=begun: begun.close(failed=error is not None))
    trackers.append(begun)
  if ids != known:
    write_atomically(workdir / IDS, to_json(ids) + "\n")
  return trackers


def _read_ids(path: Path) -> dict[str, str]:
  """The ids of a run by tracker; none if it had none, or the file is damaged."""
  try:
    ids = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return ids if isinstance(ids, dict) else {}


def _reason(error: Exception) -> str:
  return printable(f"{type(error).__name__}: {error}", limit=300)
