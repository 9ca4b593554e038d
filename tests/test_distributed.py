"""Several real processes: the same losses, the same saved step, and stalls that are named."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from helpers import finish, read_lines, wait_for_line

from gfnet_jax.checkpoints.store import list_steps

TRAIN = ("train.py", "--workdir")
# 31 steps with everything on that could depend on the number of processes.
FULL = (
  "--config.num_epochs=0.69",
  "--config.eval_every_epochs=0.4",
  "--config.log_every_steps=1",
  "--config.optimizer.warmup_epochs=0.1",
  "--config.data.batch_size=32",
  "--config.data.eval_batch_size=100",
  "--config.model.embed_dim=16",
  "--config.model.depth=2",
  "--config.model.drop_path_rate=0.3",
  "--config.mixing.mixup_alpha=0.8",
  "--config.mixing.cutmix_alpha=1.0",
  "--config.mixing.group_size=4",
  "--config.ema_decay=0.9",
)


def losses(workdir: Path) -> list[float]:
  return [
    line["train_loss"] for line in read_lines(workdir / "metrics.jsonl") if "train_loss" in line
  ]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory, script) -> Path:
  workdir = tmp_path_factory.mktemp("one") / "run"
  result = script("train.py", "--workdir", workdir, *FULL)
  assert result.returncode == 0, result.stderr
  return workdir


@pytest.mark.parametrize(
  ("processes", "devices"),
  [
    (2, 4),
    pytest.param(1, 8, marks=pytest.mark.slow),
    pytest.param(4, 2, marks=pytest.mark.slow),
  ],
)
def test_losses_do_not_depend_on_processes(start, one_device, tmp_path, processes, devices):
  results = finish(start(*TRAIN, tmp_path / "run", *FULL, processes=processes, devices=devices))
  assert [code for code, *_ in results] == [0] * processes, results
  assert f"{processes * devices} x cpu" in results[0][1]
  spoken = [line for _, out, _ in results[1:] for line in out.splitlines()]
  assert all(line.startswith("[Gloo]") for line in spoken), "only process 0 speaks"
  expected, found = losses(one_device), losses(tmp_path / "run")
  assert len(expected) == 31
  np.testing.assert_allclose(found, expected, atol=1e-5)
  for name in ("eval_top1", "eval_ema_top1", "eval_images"):
    values = [
      [line[name] for line in read_lines(path / "metrics.jsonl") if name in line]
      for path in (one_device, tmp_path / "run")
    ]
    assert values[0] == values[1]


@pytest.mark.slow
def test_a_sharded_student_does_not_depend_on_processes(start, one_device, tmp_path):
  """FSDP, a teacher, two parts to a batch."""
  student = (
    *FULL,
    "--config.sharding=fsdp",
    f"--config.distillation.teacher={one_device}",
    "--config.optimizer.accumulate_steps=2",
  )
  for name, processes, devices in (("one", 1, 1), ("two", 2, 2)):
    results = finish(start(*TRAIN, tmp_path / name, *student, processes=processes, devices=devices))
    assert [code for code, *_ in results] == [0] * processes, results
  found, expected = losses(tmp_path / "two"), losses(tmp_path / "one")
  assert len(expected) == 31
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_evaluation_does_not_depend_on_processes(start, one_device, tmp_path):
  output = tmp_path / "eval.json"
  command = ("eval.py", "--checkpoint", one_device, "--output", output)
  results = finish(start(*command, processes=2, devices=2))
  assert [code for code, *_ in results] == [0, 0], results
  assert results[1][1].count("top-1") == 0, "only process 0 speaks"
  last = [line for line in read_lines(one_device / "metrics.jsonl") if "eval_top1" in line][-1]
  found = json.loads(output.read_text())
  assert (found["top1"], found["images"]) == (last["eval_top1"], 360)
  assert found["loss"] == pytest.approx(last["eval_loss"], rel=1e-6)


LONG = (*FULL, "--config.num_epochs=50", "--config.eval_every_epochs=1")


@pytest.mark.parametrize(
  "stop", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_to_one_of_two_saves_the_same_step(start, tmp_path, stop):
  workdir = tmp_path / "run"
  run = start(*TRAIN, workdir, *LONG, processes=2, devices=1)
  wait_for_line(run[0], "epoch")
  run[1].send_signal(stop)
  if stop == signal.SIGTERM:
    run[1].send_signal(stop)  # a second one must do no harm
  results = finish(run)
  assert [code for code, *_ in results] == [0, 0], results
  assert "the same command goes on from here" in results[0][1]
  saved = list_steps(workdir / "checkpoints")[-1]
  assert read_lines(workdir / "metrics.jsonl")[-1]["step"] == saved
  # Restored by another number of processes, on another number of devices.
  resumed = start(*TRAIN, workdir, *LONG, processes=1, devices=4)
  wait_for_line(resumed[0], f"Steps:           2245, resumed after {saved}")
  resumed[0].send_signal(signal.SIGTERM)
  assert finish(resumed)[0][0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_stops_is_named_by_the_others(start, tmp_path, stop):
  command = (*TRAIN, tmp_path / "run", *LONG, "--config.stall_timeout=12")
  run = start(*command, processes=2, devices=1)
  wait_for_line(run[0], "epoch")
  run[1].send_signal(stop)
  code, _, errors = finish(run[:1])[0]
  assert code == 3, errors
  assert re.search(r"^error: process 1 gave no sign of life for 12 s", errors, re.MULTILINE)


@pytest.mark.slow
def test_with_a_long_timeout_jax_names_a_dead_process(start, tmp_path):
  run = start(*TRAIN, tmp_path / "run", *LONG, processes=2, devices=1)
  wait_for_line(run[0], "epoch")
  run[1].kill()
  code, _, errors = finish(run[:1])[0]
  assert code == -signal.SIGABRT, errors
  assert re.search(r"tasks are unhealthy \(stopped sending heartbeats\):\s+1\s", errors)


@pytest.mark.slow
def test_a_single_process_saves_on_sigterm_and_goes_on(start, tmp_path, script):
  workdir = tmp_path / "run"
  run = start(*TRAIN, workdir, *LONG, processes=1, devices=1)
  wait_for_line(run[0], "epoch")
  run[0].send_signal(signal.SIGTERM)
  assert finish(run)[0][0] == 0
  saved = list_steps(workdir / "checkpoints")[-1]
  shorter = script("train.py", "--workdir", workdir, *LONG, "--config.num_epochs=1")
  assert shorter.returncode == 2, "another config does not continue the run"
  assert "num_epochs=50" in shorter.stderr
  assert list_steps(workdir / "checkpoints")[-1] == saved
