"""Trackers of experiments: a run continues whatever they do, and the libraries get its numbers."""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import gfnet_jax
from configs import photos
from configs.digits import get_config
from gfnet_jax.errors import UserError
from gfnet_jax.training import run, trackers
from gfnet_jax.training.guards import Guards
from gfnet_jax.training.trackers import BackgroundTracker, check_trackers, open_trackers
from gfnet_jax.training.writer import MetricWriter


class Recorder:
  """A tracker of our own that keeps what it gets."""

  run_id = "r1"

  def __init__(self, config=None, workdir=None, run_id=None):
    self.begun_with, self.rows, self.ended = run_id, [], None

  def write(self, step, values):
    self.rows.append((step, values))

  def close(self, outcome):
    self.ended = outcome


class Failing(Recorder):
  def write(self, step, values):
    super().write(step, values)
    raise ConnectionError("no route to \x1b[31mhost\n")


def config_of(*names):
  config = get_config()
  for name in names:
    config.trackers[name] = True
  return config


@pytest.fixture
def recorded(monkeypatch):
  """The trackers that `open_trackers` makes under the name wandb."""
  made = []
  monkeypatch.setitem(
    trackers.TRACKERS, "wandb", lambda *args: made.append(Recorder(*args)) or made[-1]
  )
  return made


def test_a_tracker_gets_what_tensorboard_gets(tmp_path, recorded):
  with (
    open_trackers(config_of("wandb"), tmp_path, fresh=True) as opened,
    MetricWriter(tmp_path, 0, opened) as writer,
  ):
    writer.write("metrics", 1, {"epoch": 0.5, "train_loss": 2.0, "eval_ema_top1": 60})
    writer.write("metrics", 2, {"train_loss": float("nan"), "train_accuracy": float("inf")})
    writer.write("performance", 2, {"memory_gib": 1.5})
  [tracker] = recorded
  assert tracker.rows == [
    (1, {"train/epoch": 0.5, "train/loss": 2.0, "eval_ema/top1": 60.0}),
    (2, {}),
    (2, {"performance/memory_gib": 1.5}),
  ]
  assert tracker.ended == "finished"
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_that_continues_is_known_by_its_id(tmp_path, recorded):
  for fresh in (True, False, True):
    with open_trackers(config_of("wandb"), tmp_path, fresh=fresh):
      pass
  assert [tracker.begun_with for tracker in recorded] == [
    None,
    "r1",
    "r1",
  ]  # the last: before a checkpoint
  for damaged in ("", "{", "[1]", '"x"'):
    (tmp_path / "trackers.json").write_text(damaged)
    with open_trackers(config_of("wandb"), tmp_path, fresh=False):
      pass
    assert recorded[-1].begun_with is None
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "r1"}


def test_the_end_of_a_run_by_an_error_is_told(tmp_path, recorded):
  with pytest.raises(UserError), open_trackers(config_of("wandb"), tmp_path, fresh=True):
    raise UserError("full")
  assert recorded[0].ended == "failed"


def test_a_run_that_is_stopped_has_not_finished(tmp_path, recorded):
  with open_trackers(config_of("wandb"), tmp_path, fresh=True) as [tracker]:
    tracker.outcome = "stopped"
  assert recorded[-1].ended == "stopped"
  with (
    pytest.raises(UserError),
    open_trackers(config_of("wandb"), tmp_path, fresh=False) as [tracker],
  ):
    tracker.outcome = "stopped"
    raise UserError("the disk is full")
  assert recorded[-1].ended == "failed"


@pytest.mark.parametrize(
  ("outcome", "status"), [("finished", "FINISHED"), ("stopped", "KILLED"), ("failed", "FAILED")]
)
def test_outcomes_in_the_words_of_the_libraries(outcome, status):
  calls = []

  class Library:
    def __getattr__(self, name):
      return lambda *args, **options: calls.append((name, *args, *options.values()))

  mlflow, wandb = object.__new__(trackers.MLflow), object.__new__(trackers.Wandb)
  mlflow._client, mlflow.run_id, wandb._run = Library(), "r1", Library()
  mlflow.close(outcome)
  wandb.close(outcome)
  preempted = [("mark_preempting",)] if outcome == "stopped" else []
  ended = ("finish", int(outcome != "finished"))
  assert calls == [("set_terminated", "r1", status), *preempted, ended]


def test_every_tracker_of_a_run_hears_of_a_stop():
  begun = [SimpleNamespace(outcome="finished") for _ in range(2)]
  Guards(None, None, None, None, None, begun).mark_stopped()
  assert [tracker.outcome for tracker in begun] == ["stopped"] * 2


@pytest.mark.slow
def test_a_signal_stops_a_run_which_then_finishes_as_the_same(tmp_path, recorded, monkeypatch):
  def write(self, step, values):
    if self.begun_with is None:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(Recorder, "write", write)
  monkeypatch.setattr(run, "check_trackers", lambda config: None)  # wandb need not be installed
  config = config_of("wandb")
  config.num_epochs, config.log_every_steps, config.optimizer.warmup_epochs = 2.0, 1, 1.0
  config.model.update(depth=1, embed_dim=8)
  with jax.numpy_dtype_promotion("standard"):  # as for users
    assert gfnet_jax.train(config, tmp_path) is None
    assert gfnet_jax.train(config, tmp_path) is not None
  assert [(tracker.begun_with, tracker.ended) for tracker in recorded] == [
    (None, "stopped"),
    ("r1", "finished"),
  ]


def test_a_run_on_photos_is_an_experiment_with_their_name(tmp_path, monkeypatch):
  names = []

  class Client:
    def create_run(self, experiment_id, run_name):
      return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def log_batch(self, run_id, **options):
      pass

  library = SimpleNamespace(
    MlflowClient=Client,
    entities=SimpleNamespace(Metric=None, Param=lambda name, value: (name, value)),
    set_experiment=lambda name: names.append(name) or SimpleNamespace(experiment_id="1"),
  )
  monkeypatch.setitem(sys.modules, "mlflow", library)
  config = photos.get_config()
  config.data.name = "mine/pets"
  assert trackers.MLflow(config, tmp_path, None).run_id == "r1"
  assert names == ["photos-pets"]


def test_none_are_opened_unless_asked_for(tmp_path):
  with open_trackers(get_config(), tmp_path, fresh=True) as opened:
    assert opened == []
  assert not list(tmp_path.iterdir())


def test_a_failure_is_one_warning_and_the_last_that_is_tried(capsys):
  failing = Failing()
  tracker = BackgroundTracker("wandb", failing)
  for step in range(5):
    tracker.write(step, {"x": 1})
  tracker.close(failed=False)
  tracker.write(6, {"x": 1})
  assert len(failing.rows) == 1
  assert capsys.readouterr().out == (
    "warning: wandb failed (ConnectionError: no route to \\x1b[31mhost\\n) and gets no more "
    "metrics; metrics.jsonl and TensorBoard have them all\n"
  )


def test_a_server_that_hangs_holds_up_neither_steps_nor_the_end(monkeypatch, capsys):
  released = threading.Event()

  class Hanging(Recorder):
    def write(self, step, values):
      released.wait()

  monkeypatch.setattr(trackers, "LAST_SECONDS", 0.01)
  tracker = BackgroundTracker("mlflow", Hanging())
  for step in range(1000):
    tracker.write(step, {"x": 1})
  tracker.close(failed=False)
  assert capsys.readouterr().out == (
    "warning: mlflow did not take the last metrics in time; metrics.jsonl and TensorBoard have "
    "them all\n"
  )
  released.set()


def test_what_cannot_begin_is_an_error_of_a_new_run_only(tmp_path, monkeypatch, capsys):
  def refuse(*_):
    raise RuntimeError("No API key")

  monkeypatch.setitem(trackers.TRACKERS, "wandb", refuse)
  expected = (
    r"wandb cannot begin: RuntimeError: No API key; set it up \(docs/tracking.md\), or run with "
    "--config.trackers.wandb=False"
  )
  other = Recorder()
  monkeypatch.setitem(trackers.TRACKERS, "mlflow", lambda *_: other)
  monkeypatch.setattr(trackers, "TRACKERS", dict(reversed(trackers.TRACKERS.items())))
  config = config_of("wandb", "mlflow")
  with pytest.raises(UserError, match=expected), open_trackers(config, tmp_path, fresh=True):
    pass
  assert other.ended == "failed"
  with open_trackers(config, tmp_path, fresh=False) as opened:
    assert len(opened) == 1
  assert other.ended == "finished"
  assert capsys.readouterr().out.startswith(
    "warning: wandb cannot continue (RuntimeError: No API key)"
  )


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)])  # or a folder of that name
@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_library_that_is_missing_is_one_line_before_anything(
  name, spec, tmp_path, monkeypatch, in_process
):
  monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: spec)
  workdir = tmp_path / "run"
  code, _, errors = in_process("train.py", "--workdir", workdir, f"--config.trackers.{name}=True")
  assert code == 2
  assert errors == (
    f"error: trackers.{name} is True, but {name} is not installed; pip install {name} (or "
    f"gfnet_jax with its extra '{name}'), or set it to False\n"
  )
  assert not workdir.exists()


def test_every_tracker_has_a_field():
  assert set(get_config().trackers) == set(trackers.TRACKERS)
  check_trackers(get_config())


def wandb_records(path: Path) -> Iterator[bytes]:
  """The records of an offline file: a header of 7 bytes, then the format of LevelDB's logs."""
  content, at, record = path.read_bytes(), 7, b""
  while at + 7 <= len(content):
    if 32768 - at % 32768 < 7:  # no room for a header at the end of a block
      at += 32768 - at % 32768
      continue
    length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
    record += content[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # whole, or the last part
      yield record
      record = b""


def track(name: str, workdir: Path) -> None:
  """A run of three steps, stopped after the second and ended by an error."""
  workdir.mkdir()
  for fresh, steps in ((True, (1, 2)), (False, (2, 3))):
    with (
      contextlib.suppress(UserError),
      open_trackers(config_of(name), workdir, fresh=fresh) as [tracker],
    ):
      for step in steps:
        tracker.write(step, {"train/loss": 1 / step, "train/bad": float("nan")})
        tracker.write(step, {"eval/top1": 10.0 * step})
      if not fresh:
        raise UserError("the end")


@pytest.mark.filterwarnings("default")  # of the library
def test_wandb_offline_holds_the_run(tmp_path, monkeypatch):
  pytest.importorskip("wandb", reason="wandb is not installed (pip install wandb)")
  from wandb.proto.wandb_internal_pb2 import Record

  monkeypatch.setenv("WANDB_MODE", "offline")
  track("wandb", tmp_path / "run")
  found = []
  for path in sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")):
    rows, exits, ids = [], [], set()
    for data in wandb_records(path):
      record = Record.FromString(data)
      kind = record.WhichOneof("record_type")
      if kind == "run":
        ids.add(record.run.run_id)
        fields = {item.key for item in record.run.config.update}
        assert not fields or {"seed", "num_epochs", "model"} <= fields
      elif kind == "history":
        items = {
          item.key or "/".join(item.nested_key): item.value_json for item in record.history.item
        }
        rows.append({k: json.loads(v) for k, v in items.items() if not k.startswith("_")})
      elif kind == "exit":
        exits.append(record.exit.exit_code)
    found.append((ids, rows, exits))
  run_id = json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]
  assert [ids for ids, _, _ in found] == [{run_id}] * 2
  assert [exits for _, _, exits in found] == [[0], [1]]
  for (_, rows, _), steps in zip(found, ((1, 2), (2, 3)), strict=True):
    expected = []
    for step in steps:
      expected += [{"step": step, "train/loss": 1 / step}, {"step": step, "eval/top1": 10.0 * step}]
    assert rows == expected


@pytest.mark.filterwarnings("default")  # of the library
def test_mlflow_in_a_file_holds_the_run(tmp_path, monkeypatch):
  mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (pip install mlflow)")
  pytest.importorskip("sqlalchemy", reason="this MLflow knows servers only (pip install mlflow)")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
  monkeypatch.chdir(tmp_path)
  mlflow.set_tracking_uri(None)
  track("mlflow", tmp_path / "run")
  client = mlflow.MlflowClient()
  experiment = client.get_experiment_by_name("digits")
  [run] = client.search_runs([experiment.experiment_id])
  assert run.info.status == "FAILED"
  assert run.info.run_name == "run"
  assert run.data.params["optimizer.learning_rate"] == "0.003"
  history = client.get_metric_history(run.info.run_id, "train/loss")
  assert [(point.step, point.value) for point in history] == [
    (1, 1.0),
    (2, 0.5),
    (2, 0.5),
    (3, 1 / 3),
  ]
  assert [point.value for point in client.get_metric_history(run.info.run_id, "eval/top1")] == [
    *(10, 20, 20, 30)
  ]
