"""Whole runs on one's own photos: trained, evaluated, reported and predicted from."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from helpers import read_lines
from photo_sets import SHAPES, write_photos

import gfnet_jax
from gfnet_jax.checkpoints.model import save_model
from gfnet_jax.models.functional import split
from gfnet_jax.training import choices, final_report

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def _standard_promotion():
  with jax.numpy_dtype_promotion("standard"):  # optax multiplies integers and floats
    yield


TINY = (
  *("--config.model.name=gfnet-ti", "--config.model.image_size=40", "--config.model.patch_size=8"),
  *("--config.model.embed_dim=8", "--config.model.depth=1", "--config.num_epochs=2"),
)


@pytest.mark.usefixtures("_standard_promotion")
def test_a_run_ends_with_a_report_and_predicts(photos, in_process, tmp_path, monkeypatch):
  workdir = tmp_path / "run"
  train = ("train.py", "--config", "configs/photos.py", f"--config.data.name={photos}")
  code, printed, errors = in_process(*train, "--workdir", workdir, *TINY)
  assert code == 0, errors
  assert f"Classify an image with: python tools/predict.py {workdir} IMAGE" in printed
  assert "epoch    2.00   top-1" in printed
  assert "top-5" not in printed
  report = json.loads((workdir / "report/report.json").read_text())
  last = read_lines(workdir / "metrics.jsonl")[-1]
  assert report["images"] == last["eval_images"] == 6
  assert 100 * report["correct"] / 6 == pytest.approx(last["eval_top1"])
  assert [found["name"] for found in report["classes"]] == list(SHAPES)
  assert "head.kernel" in (workdir / "parameters.txt").read_text()
  code, printed, errors = in_process("tools/predict.py", workdir, photos / "cross/0001.jpg")
  assert code == 0, errors
  assert {line.split()[1] for line in printed.splitlines()[1:]} == set(SHAPES)
  code, printed, errors = in_process("eval.py", "--checkpoint", workdir)
  assert code == 0, errors
  assert "6 images" in printed
  assert "warning" not in printed
  monkeypatch.setattr(choices, "fitting_batch_size", lambda *arguments: 8)  # as on other devices
  evaluate, locks = final_report.evaluate, []

  def interrupted(*arguments, **options):
    locks.append((workdir / "lock.json").is_file())
    os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(*arguments, **options)

  monkeypatch.setattr(final_report, "evaluate", interrupted)
  code, printed, errors = in_process(*train, "--workdir", workdir, *TINY)
  assert code == 0, errors
  assert "resumed after" in printed
  assert "Stopped by a signal with everything saved; the same command continues" in printed
  assert "Report: " not in printed
  assert locks == [True], "no other run can begin meanwhile"
  write_photos(photos, 60, size=(24, 20), seed=1)
  code, printed, errors = in_process("eval.py", "--checkpoint", workdir)
  assert code == 0, errors
  assert (
    f"warning: {photos} has changed since the training, now 12 images instead of 6; images that "
    "were trained on may be among them; compare the result with no other\n"
  ) in printed


@pytest.mark.slow
@pytest.mark.parametrize("count", [20, 120, 5000])
def test_two_commands_as_typed(count, script, tmp_path):
  photos = write_photos(tmp_path / "photos", count)
  limits = ("--config.num_epochs=2",) if count == 5000 else ()
  train = ("train.py", "--config", "configs/photos.py", f"--config.data.name={photos}", *limits)
  for resumed in (False, True):
    result = script(*train, "--workdir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert ("resumed after" in result.stdout) == resumed
  last = read_lines(tmp_path / "run/metrics.jsonl")[-1]
  if count == 120:
    assert last["eval_top1"] > 80
  result = script("tools/predict.py", tmp_path / "run", photos / "circle")
  assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_frozen_trunk_from_an_official_file(photos, script, tmp_path):
  ours, official = tmp_path / "ours", tmp_path / "weights.safetensors"
  save_model(ours, gfnet_jax.create_model("gfnet-ti"), dict(name="gfnet-ti"))
  result = script("convert_torch_weights.py", "--to-torch", ours, official)
  assert result.returncode == 0, result.stderr
  result = script(
    *("train.py", "--config", "configs/photos.py", f"--config.data.name={photos}"),
    *("--workdir", tmp_path / "run", "--config.num_epochs=2", "--config.freeze_trunk=True"),
    f"--config.init_checkpoint={official}",
  )
  assert result.returncode == 0, result.stderr
  assert "resized from 224x224 to 128x128 pixels, with a new head: 3 classes" in result.stdout
  saved, before = gfnet_jax.load_model(tmp_path / "run"), gfnet_jax.load_model(ours)
  assert (saved.class_names, saved.config["image_size"]) == (list(SHAPES), 128)
  for name in ("patch_embed.proj.kernel", "blocks.11.mlp.fc2.kernel", "norm.scale"):
    found, expected = (split(model.model)[1][name] for model in (saved, before))
    np.testing.assert_array_equal(found, expected, err_msg=name)
