"""What eval.py writes into its file of results."""

import json
import math
import os
from types import SimpleNamespace

import pytest

import gfnet_jax

RESULTS = {"top1": 50.0, "top5": 100.0, "loss": 0.5, "images": 4, "images_per_second": 9.0}

SAVED = SimpleNamespace(config={"num_classes": 10})


def refuse(constant):
  raise AssertionError(f"{constant} is no JSON")


@pytest.fixture
def evaluate(in_process, monkeypatch, tmp_path):
  """evaluate(*arguments, **results) runs eval.py, which finds these results."""

  def run(*arguments, **results):
    monkeypatch.setattr(gfnet_jax, "load_model", lambda *args, **options: SAVED)
    monkeypatch.setattr(gfnet_jax, "evaluate", lambda *args, **options: RESULTS | results)
    return in_process("eval.py", "--checkpoint", tmp_path, *arguments)

  return run


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(evaluate, tmp_path, loss):
  path = tmp_path / "new" / "results.json"
  code, output, _ = evaluate("--output", path, loss=loss, images_per_second=math.inf)
  assert (code, f"loss {loss:.4f}" in output) == (0, True)
  found = json.loads(path.read_text(), parse_constant=refuse)
  assert found == RESULTS | {"loss": None, "images_per_second": None}


def test_finite_results_are_written_as_they_are(evaluate, tmp_path):
  assert evaluate("--output", tmp_path / "results.json")[0] == 0
  assert (tmp_path / "results.json").read_text() == json.dumps(RESULTS, indent=2) + "\n"


def test_a_report_that_cannot_be_written_is_refused_before_the_work(evaluate, tmp_path):
  (tmp_path / "file").touch()
  code, output, errors = evaluate("--report", tmp_path / "file")
  assert (code, output, errors.count("\n")) == (2, "", 1)
  assert f"{tmp_path}/file is a file, expected a directory" in errors
  assert evaluate("--report", tmp_path / "report")[0] == 0
  assert (tmp_path / "report").is_dir()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_before_the_work(evaluate, tmp_path, make):
  make(tmp_path / "results")
  code, output, errors = evaluate("--output", tmp_path / "results")
  assert (code, output, errors.count("\n")) == (2, "", 1)
  assert f"--output {tmp_path}/results is a directory or a device, expected a file" in errors
