"""train.py and eval.py as real processes: resuming, devices, results, mistakes."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import HANGS, ROOT, read_lines, script_command, script_environment

from gfnet_jax.checkpoints.finding import list_steps
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.models.functional import split

# 27 steps with an evaluation and a checkpoint after every 4 or 5.
SMALL = (
  "--config.num_epochs=6",
  "--config.eval_every_epochs=1",
  "--config.log_every_steps=1",
  "--config.optimizer.warmup_epochs=1",
  "--config.data.batch_size=320",
  "--config.model.embed_dim=8",
  "--config.model.depth=1",
)


@pytest.fixture(scope="session")
def finished(script, tmp_path_factory) -> Path:
  """The work directory of a small run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp("finished") / "run"
  result = script("train.py", "--workdir", workdir, *SMALL)
  assert result.returncode == 0, result.stderr
  return workdir


def saved_arrays(workdir: Path) -> dict[str, np.ndarray]:
  _, params = split(load_model(workdir).model)
  return {name: np.asarray(value) for name, value in params.items()}


def test_a_run_leaves_what_it_promises(finished):
  assert list_steps(finished / "checkpoints")[-1] == 27
  assert len(list_steps(finished / "checkpoints")) in (2, 3)
  assert json.loads((finished / "config.json").read_text())["model"]["embed_dim"] == 8
  assert list((finished / "tensorboard").glob("events.out.*"))
  lines = read_lines(finished / "metrics.jsonl")
  steps = [line["step"] for line in lines if "train_loss" in line]
  assert steps == list(range(1, 28))
  evaluations = [line for line in lines if "eval_top1" in line]
  assert [line["step"] for line in evaluations] == [4, 9, 13, 18, 22, 27]
  assert all(line["eval_images"] == 360 for line in evaluations)
  assert lines[-2]["train_loss"] < lines[0]["train_loss"]


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(finished, tmp_path, script):
  """SIGKILL after the third evaluation: the first checkpoint is complete by then."""
  workdir = tmp_path / "run"
  with subprocess.Popen(
    script_command("train.py", "--workdir", workdir, *SMALL),
    cwd=ROOT,
    env=script_environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  ) as process:
    evaluations = (line for line in process.stdout if line.startswith("epoch"))
    [next(evaluations) for _ in range(3)]
    process.send_signal(signal.SIGKILL)
  assert 27 not in list_steps(workdir / "checkpoints")
  result = script("train.py", "--workdir", workdir, *SMALL)
  assert result.returncode == 0, result.stderr
  assert "resumed after" in result.stdout
  expected, found = saved_arrays(finished), saved_arrays(workdir)
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
  assert (workdir / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_a_finished_run_is_not_trained_again(finished, script):
  before = (finished / "metrics.jsonl").read_bytes()
  result = script("train.py", "--workdir", finished, *SMALL)
  assert result.returncode == 0
  assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_damaged_checkpoint_is_passed_over(finished, tmp_path, script):
  workdir = tmp_path / "run"
  shutil.copytree(finished, workdir)
  victim = next((workdir / "checkpoints" / "00000027").rglob("d/*"))
  victim.write_bytes(victim.read_bytes()[:-1])
  result = script("train.py", "--workdir", workdir, *SMALL)
  assert result.returncode == 0, result.stderr
  assert "is damaged" in result.stdout
  assert "resumed after 22" in result.stdout
  expected, found = saved_arrays(finished), saved_arrays(workdir)
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
  assert (workdir / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_eight_devices_follow_one(finished, tmp_path, script):
  result = script("train.py", "--workdir", tmp_path / "run", *SMALL, devices=8)
  assert result.returncode == 0, result.stderr
  assert "8 x cpu" in result.stdout
  one, eight = (
    [line["train_loss"] for line in read_lines(path / "metrics.jsonl") if "train_loss" in line]
    for path in (finished, tmp_path / "run")
  )
  assert len(one) > 20
  np.testing.assert_allclose(eight[:20], one[:20], atol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_eval_prints_the_number_that_the_run_ended_with(finished, tmp_path, script, devices):
  output = tmp_path / "results" / "eval.json"
  result = script("eval.py", "--checkpoint", finished, "--output", output, devices=devices)
  assert result.returncode == 0, result.stderr
  last = read_lines(finished / "metrics.jsonl")[-1]
  results = json.loads(output.read_text())
  assert results["top1"] == last["eval_top1"]
  assert results["top5"] == last["eval_top5"]
  assert results["images"] == last["eval_images"] == 360
  assert results["loss"] == pytest.approx(last["eval_loss"], abs=1e-6)
  assert f"top-1 {last['eval_top1']:6.2f} %" in result.stdout


TINY = ("--config.model.embed_dim=8", "--config.model.depth=1")  # where it is initialised
MIXED = ("--config.mixing.mixup_alpha=0.8",)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["train.py", "--config.learning_rte=1"], "unknown config field learning_rte"),
    (["train.py", "--config.model.width=1"], "unknown config field model.width"),
    (
      ["train.py", *MIXED, "--config.mixing.group_size=48"],
      "expected a divisor of data.batch_size",
    ),
    (["train.py", "--config.model.name=gfnet-sx"], "unknown model 'gfnet-sx'"),
    (["train.py", "--config.model.image_size=9"], "image_size 9x9 is not divisible by 2"),
    (["train.py", "--config.num_epochs=many"], "config.num_epochs=many"),
    (["train.py", "--config", "configs/none.py"], "config file configs/none.py not found"),
    (["train.py", "--config.data.train_split=train[:0]"], "is empty"),
    (["train.py", "--config.data.batch_size=2000"], "fewer than one batch of 2000"),
    (
      [*("train.py", "--config.model.image_size=16", "--config.augment.crop=random_resized")],
      "digits test[0]: got an image of 8x8 (height x width), expected 16x16",
    ),
    (["train.py", *TINY, "--workdir", "runs/\udcff"], "is not UTF-8 in this locale"),
    (["train.py", "--config.precision=fp8"], "expected one of highest, default, bf16"),
    (["train.py", "--config.model.num_classes=7"], "has 10 classes, the model has 7"),
    (["train.py", *TINY, "--workdir", "README.md/run"], "cannot write to README.md/run"),
    (["train.py", "--config.init_checkpoint=runs/nothing"], "no checkpoint in runs/nothing"),
    (["train.py", "--config.distillation.teacher=runs/nothing"], "no checkpoint in runs/nothing"),
    (["train.py", "--config.model.mixer=global-fitler"], "did you mean global-filter?"),
    (["train.py", "--work-dir", "x"], "work-dir"),
    (["train.py", "--config.log_every_steps=0"], "log_every_steps is 0, expected at least 1"),
    (["train.py", "--config.on_nonfinite=ignore"], "expected one of stop, skip, rollback"),
    (
      [*("train.py", "--coordinator", "host0", "--num-processes", 2, "--process-id", 0)],
      "--coordinator is 'host0', expected host:port",
    ),
    (["eval.py", "--checkpoint", "configs"], "no checkpoint in configs"),
    (["eval.py"], "--torch-checkpoint is required (see eval.py --help)"),
    (["eval.py", "--torch-checkpoint", "configs"], "--torch-checkpoint configs is not a file"),
    (["eval.py", "--checkpoint", "nothing.pth"], "nothing.pth"),
  ],
)
def test_mistakes_end_with_one_line_and_code_2(arguments, message, in_process, tmp_path):
  if arguments[0] == "train.py" and "--workdir" not in arguments:
    arguments = [*arguments, "--workdir", tmp_path / "run"]
  code, _, errors = in_process(*arguments)
  assert code == 2
  assert errors.startswith("error: ")
  assert errors.count("\n") == 1
  assert message in errors
  assert not (tmp_path / "run").exists(), "nothing half-written"


def test_a_mistake_of_a_real_process(script, tmp_path):
  """Found in the data, when everything has been imported."""
  result = script("train.py", "--config.model.num_classes=7", "--workdir", tmp_path / "run")
  lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
  assert result.returncode == 2, result.stderr
  assert len(lines) == 1, result.stderr
  assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--config.seed=1", "seed=0, this one has 1"),
    ("--config.model.scan=True", "model.scan=False, this one has True"),
  ],
)
def test_another_config_does_not_continue_a_run(flag, message, finished, in_process):
  code, _, errors = in_process("train.py", "--workdir", finished, *SMALL, flag)
  assert code == 2
  assert f"holds a run with {message}" in errors


def test_a_batch_that_does_not_split_over_the_devices(script, tmp_path):
  result = script(
    "train.py", "--config.data.batch_size=63", "--workdir", tmp_path / "run", devices=8
  )
  assert result.returncode == 2
  assert "data.batch_size is 63, expected a positive multiple of the 8 devices" in result.stderr


@pytest.mark.parametrize("name", ["train.py", "eval.py"])
def test_help_teaches(name, script):
  result = script(name, "--help")
  assert result.returncode == 0
  assert f"python {name}" in result.stdout


def test_an_interrupt_is_not_lost_in_a_destructor():
  code = """if __name__ == "__main__":
    import signal, sys, time
    from gfnet_jax.command_line import run

    class Interrupted:
      def __del__(self):
        signal.raise_signal(signal.SIGINT)

    def main(arguments):
      Interrupted()
      time.sleep(60)

    sys.exit(run(main))"""
  result = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, timeout=HANGS, capture_output=True, text=True
  )
  assert (result.returncode, result.stderr) == (130, "interrupted\n")
