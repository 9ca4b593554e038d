"""Several real processes: the same losses, the same saved step, and stalls that are named."""

import contextlib
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, read_lines, script_command, script_environment

from gfnet_jax.training.checkpoint import list_steps

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


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


@pytest.fixture
def start() -> Iterator[Callable[..., list[subprocess.Popen]]]:
  """start(workdir, *arguments, processes, devices) starts all processes of a run."""
  with contextlib.ExitStack() as stack:

    def start(workdir: Path, *arguments, processes: int, devices: int) -> list[subprocess.Popen]:
      flags = ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", processes)
      started = []
      for i in range(processes):
        process = subprocess.Popen(
          script_command(
            *("train.py", "--workdir", workdir, *arguments),
            *((*flags, "--process-id", i) if processes > 1 else ()),
          ),
          cwd=ROOT,
          env=script_environment(devices),
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
        )
        stack.enter_context(process)
        stack.callback(process.kill)  # before the context waits for its end
        started.append(process)
      return started

    yield start


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
  """(exit code, standard output, standard error) of every process."""
  outputs = [process.communicate(timeout=300) for process in processes]
  return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def losses(workdir: Path) -> list[float]:
  return [line["train_loss"] for line in read_lines(workdir / "metrics.jsonl") if "epoch" in line]


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
  results = finish(start(tmp_path / "run", *FULL, processes=processes, devices=devices))
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


def wait_for_line(process: subprocess.Popen, start: str) -> None:
  for line in process.stdout:
    if line.startswith(start):
      return
  raise AssertionError(f"no line begins with {start!r}: {process.stderr.read()}")


LONG = (*FULL, "--config.num_epochs=50", "--config.eval_every_epochs=1")


def test_sigterm_to_one_of_two_saves_the_same_step(start, tmp_path):
  workdir = tmp_path / "run"
  run = start(workdir, *LONG, processes=2, devices=1)
  wait_for_line(run[0], "epoch")
  run[1].send_signal(signal.SIGTERM)
  run[1].send_signal(signal.SIGTERM)  # a second one must do no harm
  results = finish(run)
  assert [code for code, *_ in results] == [0, 0], results
  assert "the same command goes on from here" in results[0][1]
  saved = list_steps(workdir / "checkpoints")[-1]
  assert read_lines(workdir / "metrics.jsonl")[-1]["step"] == saved
  # Restored by another number of processes, on another number of devices.
  resumed = start(workdir, *LONG, processes=1, devices=4)
  wait_for_line(resumed[0], f"Steps:           2245, resumed after {saved}")
  resumed[0].send_signal(signal.SIGTERM)
  assert finish(resumed)[0][0] == 0


@pytest.mark.parametrize(
  "stop", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_a_process_that_stops_is_named_by_the_others(start, tmp_path, stop):
  run = start(tmp_path / "run", *LONG, "--config.stall_timeout=12", processes=2, devices=1)
  wait_for_line(run[0], "epoch")
  run[1].send_signal(stop)
  code, _, errors = finish(run[:1])[0]
  assert code == 3, errors
  assert re.search(r"^error: process 1 gave no sign of life for 12 s", errors, re.MULTILINE)


@pytest.mark.slow
def test_a_single_process_saves_on_sigterm_and_goes_on(start, tmp_path, script):
  workdir = tmp_path / "run"
  run = start(workdir, *LONG, processes=1, devices=1)
  wait_for_line(run[0], "epoch")
  run[0].send_signal(signal.SIGTERM)
  assert finish(run)[0][0] == 0
  saved = list_steps(workdir / "checkpoints")[-1]
  shorter = script("train.py", "--workdir", workdir, *LONG, "--config.num_epochs=1")
  assert shorter.returncode == 2, "another config does not continue the run"
  assert "num_epochs=50" in shorter.stderr
  assert list_steps(workdir / "checkpoints")[-1] == saved
