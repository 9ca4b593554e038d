"""Continuing a run: what may differ, and runs that older versions began."""

import re
import zipfile
from pathlib import Path

import jax
import own_mixer
import pytest
from helpers import ROOT, read_lines

from configs.digits import get_config
from gfnet_jax.errors import UserError
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.training import metrics
from gfnet_jax.training.config_rules import RULES, flatten
from gfnet_jax.training.loop import train
from gfnet_jax.training.resume import Progress
from gfnet_jax.training.same_run import check_same_run

pytestmark = pytest.mark.usefixtures("data_dir")


@pytest.fixture(autouse=True)
def _standard_promotion():
  with jax.numpy_dtype_promotion("standard"):  # optax multiplies integers and floats
    yield


@pytest.fixture
def older_run(tmp_path) -> Path:
  """A run of 9 steps that the commit d75db2a began, with a checkpoint after step 5."""
  with zipfile.ZipFile(ROOT / "tests/golden/run_of_d75db2a.zip") as archive:
    archive.extractall(tmp_path / "run")
  return tmp_path / "run"


def config_of_the_older_run():
  config = get_config()
  config.update(num_epochs=2.0, eval_every_epochs=2.0, log_every_steps=4, ema_decay=0.9)
  config.model.update(embed_dim=8, depth=1, patch_size=4)
  config.optimizer.warmup_epochs = 1.0
  config.data.batch_size = 320
  config.augment.update(auto_augment="", padding=1)
  config.checkpoints.update(every_steps=5, keep_last=9)
  return config


def test_a_run_of_an_older_version_continues_as_it_would_have(older_run, capsys):
  """To what that version itself wrote, in part within a mean that it had begun."""
  results = train(config_of_the_older_run(), older_run)
  [warning] = [x for x in capsys.readouterr().out.splitlines() if x.startswith("warning")]
  assert warning == (
    "warning: an older version began this run and did not record its images: whether they are "
    "still the same is not checked; from its next checkpoint on it is"
  )
  train(config_of_the_older_run(), older_run)
  assert "warning" not in capsys.readouterr().out
  lines = read_lines(older_run / "metrics.jsonl")
  assert [line["step"] for line in lines] == [4, 8, 9, 9]
  assert lines[1]["train_loss"] == pytest.approx(2.2969717979431152, rel=1e-5)
  assert lines[1]["train_gradient_norm"] == pytest.approx(0.10311223566532135, rel=1e-4)
  assert lines[2]["parameter_norm"] == pytest.approx(5.237536430358887, rel=1e-5)
  assert results["loss"] == pytest.approx(2.2797804090711806, rel=1e-5)
  assert results["ema_loss"] == pytest.approx(2.289314948187934, rel=1e-5)


def test_a_model_of_an_older_version_is_read(older_run):
  saved = load_model(older_run)
  assert (saved.step, saved.config["embed_dim"], len(saved.class_names)) == (5, 8, 10)
  assert load_model(older_run, ema=True).step == 5


def test_a_field_of_the_model_that_changes_the_network_is_refused(older_run, monkeypatch):
  """The older run knew no mixers: no field of its config differs."""
  own_mixer.register(monkeypatch)
  config = config_of_the_older_run()
  config.model.mixer = "gate"
  message = (
    r"run holds a run of another network than config.model: 1 missing \(blocks.0.filter.gain"
  )
  with pytest.raises(UserError, match=message):
    train(config, older_run)


def test_a_metric_may_come_and_go(older_run, capsys, monkeypatch):
  monkeypatch.setitem(metrics.METRICS, "largest", lambda outcome: outcome.logits.max(-1))
  monkeypatch.delitem(metrics.METRICS, "accuracy")
  train(config_of_the_older_run(), older_run)
  printed = capsys.readouterr().out
  assert printed.count("warning") == 2  # one of them of the images, as above
  assert "warning: this run began without the metric largest, whose next mean" in printed
  line = read_lines(older_run / "metrics.jsonl")[1]
  assert line["train_loss"] == pytest.approx(2.2969717979431152, rel=1e-5)
  assert "train_largest" in line
  assert "train_accuracy" not in line


def test_a_field_may_come_and_go_with_one_warning(capsys):
  now = flatten(get_config().to_dict())
  before = {name: value for name, value in now.items() if name not in ("seed", "model.scan")}
  check_same_run(before | {"old": 3, "unset": None}, now, "runs/x")
  assert capsys.readouterr().out == (
    "warning: this run began with other config fields; it continues with model.scan=False, seed=0 "
    "and without old=3\n"
  )
  check_same_run(now, now, "runs/x")
  check_same_run({n: v for n, v in now.items() if n != "filters_every_steps"}, now, "runs/x")
  assert capsys.readouterr().out == "", "a new field that changes nothing, and is off"


@pytest.mark.parametrize("before", ["", "weights.pth"])
def test_other_initial_weights_are_a_warning(capsys, before):
  now = flatten(get_config().to_dict()) | {"init_checkpoint": "gfnet-xs"}
  check_same_run(now | {"init_checkpoint": before}, now, "runs/x")
  assert capsys.readouterr().out == (
    "warning: runs/x holds a run, which continues; init_checkpoint=gfnet-xs has no effect: to "
    "begin with these weights, set another --workdir\n"
  )
  check_same_run(now, now | {"init_checkpoint": ""}, "runs/x")
  assert capsys.readouterr().out == ""


def test_which_fields_may_change():
  now = flatten(get_config().to_dict())
  for name, value in now.items():
    before = now | {name: f"not {value}"}
    if name == "num_epochs":
      before[name] = value + 1
    if RULES[name].may_change:
      check_same_run(before, now, "runs/x")
    else:
      difference = f"{name}={before[name]}, this one has {value}; set another"
      with pytest.raises(UserError, match=re.escape(f"runs/x holds a run with {difference}")):
        check_same_run(before, now, "runs/x")
  changeable = {name for name in now if RULES[name].may_change}
  assert {"data.data_dir", "data.reading.workers", "checkpoints.keep_last"} <= changeable
  assert not {"seed", "num_epochs", "optimizer.learning_rate", "data.batch_size"} & changeable


def test_progress_survives_a_checkpoint():
  progress = Progress(12, {"top1": 50.0}, [3, 7])
  assert progress.batch_of(4) == 4
  assert progress.batch_of(7) == 8
  metadata = {"step": 12} | progress.to_metadata()
  assert metadata["next_batch"] == 14
  assert Progress.from_metadata(metadata) == progress
