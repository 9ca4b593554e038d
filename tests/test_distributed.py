"""Several processes: starting, the same losses, the same saved step, stalls that are named."""

import json
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import HANGS, ROOT, finish, free_port, read_lines, script_environment, wait_for_line

from gfnet_jax import distributed
from gfnet_jax.checkpoints.finding import list_steps
from gfnet_jax.distributed import Preemption
from gfnet_jax.errors import UserError

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


# Too long to end by itself, of little to compile.
LONG = (
  "--config.num_epochs=50",
  "--config.eval_every_epochs=1",
  "--config.log_every_steps=1",
  "--config.data.batch_size=32",
  "--config.data.eval_batch_size=100",
  "--config.model.embed_dim=8",
  "--config.model.depth=1",
  "--config.ema_decay=0.9",
)


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
  assert "the same command continues from here" in results[0][1]
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
  command = (*TRAIN, tmp_path / "run", *LONG, "--config.stall_timeout=30")
  run = start(*command, processes=2, devices=1)
  wait_for_line(run[0], "epoch")
  run[1].send_signal(stop)
  code, _, errors = finish(run[:1])[0]
  assert code == 3, errors
  assert re.search(r"^error: process 1 gave no sign of life for 30 s", errors, re.MULTILINE)


@pytest.mark.slow
def test_with_a_long_timeout_jax_names_a_dead_process(start, tmp_path):
  run = start(*TRAIN, tmp_path / "run", *LONG, processes=2, devices=1)
  wait_for_line(run[0], "epoch")
  run[1].kill()
  code, _, errors = finish(run[:1])[0]
  assert code == -signal.SIGABRT, errors
  assert re.search(r"tasks are unhealthy \(stopped sending heartbeats\):\s+1\s", errors)


@pytest.mark.slow
def test_a_single_process_saves_on_sigterm_and_continues(start, tmp_path, script):
  workdir = tmp_path / "run"
  run = start(*TRAIN, workdir, *LONG, processes=1, devices=1)
  wait_for_line(run[0], "epoch")
  run[0].send_signal(signal.SIGTERM)
  assert finish(run)[0][0] == 0
  saved = list_steps(workdir / "checkpoints")[-1]
  shorter = script("train.py", "--workdir", workdir, *LONG, "--config.num_epochs=10")
  assert shorter.returncode == 2, "another config does not continue the run"
  assert "num_epochs=50" in shorter.stderr
  assert list_steps(workdir / "checkpoints")[-1] == saved


# Starting. What connects is replaced here by what notes its arguments.

SLURM = dict(SLURM_JOB_ID="4097", SLURM_STEP_NODELIST="node[007-9],x", SLURM_LOCALID="0")
OPEN_MPI = dict(OMPI_MCA_orte_hnp_uri="1531576320.0;tcp://10.96.0.1,10.148.0.1:34911")
OPEN_MPI |= dict(OMPI_COMM_WORLD_LOCAL_RANK="0")


@pytest.fixture
def connect(monkeypatch):
  """connect(environment, *arguments, lasts=False): what jax is told; lasts: it waits without end.

  Returns:
    The arguments of jax.distributed.initialize, or the exit code if this process ends.
  """
  told, over = [], threading.Event()

  def initialize(*arguments, initialization_timeout):
    told.append(arguments)
    if told[0] is None:
      assert over.wait(HANGS)

  def end(code):
    told.append(code)
    over.set()

  def connect(environment, *arguments, lasts=False):
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    told.extend([None] * lasts)
    distributed.initialize(*arguments)
    return told[-1] if told else None

  monkeypatch.setattr(distributed, "SAY_AFTER", 0.01)
  monkeypatch.setattr(distributed, "CONNECT_TIMEOUT", 0.05)
  monkeypatch.setattr(distributed.jax.distributed, "initialize", initialize)
  monkeypatch.setattr(distributed.os, "_exit", end)
  monkeypatch.setattr(distributed.jax.config, "update", lambda *_: None)
  return connect


def test_what_is_recognised(connect):
  assert connect({}) is None
  assert connect(SLURM | dict(SLURM_NTASKS="1", SLURM_PROCID="0")) is None
  assert connect(dict(SLURM_NTASKS="4", SLURM_PROCID="2")) == ("node007:61441", 4, 2)
  assert connect(dict(JAX_COORDINATOR_PORT="99")) == ("node007:99", 4, 2)
  assert connect({}, "host0:1234", 3, 1) == ("host0:1234", 3, 1)


@pytest.mark.parametrize(
  ("environment", "arguments", "line"),
  [
    (
      SLURM | dict(SLURM_NTASKS="4", SLURM_PROCID="2"),
      (),
      "process 2 of 4 waits for process 0 at node007:61441, which the variables of slurm tell",
    ),
    (
      SLURM | dict(SLURM_NTASKS="2", SLURM_PROCID="0"),
      (),
      "process 0 of 2 waits for the other 1 at node007:61441, which the variables of slurm tell",
    ),
    (
      OPEN_MPI | dict(OMPI_COMM_WORLD_SIZE="3", OMPI_COMM_WORLD_RANK="1"),
      (),
      "process 1 of 3 waits for process 0 at 10.96.0.1:",
    ),
    ({}, ("host0:1234", 5, 0), "process 0 of 5 waits for the other 4 at host0:1234"),
    ({}, ("host0:1234", 5, 4), "process 4 of 5 waits for process 0 at host0:1234"),
  ],
)
def test_who_is_waited_for_is_said_and_not_for_ever(connect, capsys, environment, arguments, line):
  assert connect(environment, *arguments, lasts=True) == 2
  waiting, error = capsys.readouterr().err.splitlines()
  assert waiting.startswith(line)
  assert waiting.endswith(" (at most 0 s)")
  assert error.startswith(f"error: {line}")
  assert "in vain for 0 s; start all processes of the run with the same --coordinator" in error


@pytest.mark.parametrize(
  ("environment", "arguments", "message"),
  [
    ({}, ("host0", 2, 0), "--coordinator is 'host0', expected host:port"),
    ({}, ("host0:99999", 2, 0), "--coordinator is 'host0:99999', expected host:port"),
    ({}, (":1234", 2, 0), "--coordinator is ':1234', expected host:port"),
    ({}, ("host0:0", 2, 0), "--coordinator is 'host0:0', expected host:port"),
    ({}, (None, 2, 0), "go together; give all three"),
    (SLURM | dict(SLURM_NTASKS="two", SLURM_PROCID="0"), (), "cannot connect .*'two'"),
    (SLURM | dict(SLURM_NTASKS="2", SLURM_PROCID="0", SLURM_JOB_ID="x"), (), "connect .*'x'"),
    (SLURM | dict(SLURM_NTASKS="2", SLURM_PROCID="first"), (), "cannot connect .*'first'"),
  ],
)
def test_what_names_no_processes_is_one_line(connect, environment, arguments, message):
  with pytest.raises(UserError, match=message):
    connect(environment, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_without_the_others_ends_with_one_line(process):
  """With the times of `distributed` made shorter."""
  code = f"""if True:
    import sys
    from gfnet_jax import distributed
    from gfnet_jax.command_line import run
    distributed.SAY_AFTER, distributed.CONNECT_TIMEOUT = 1, 5
    sys.exit(run(lambda _: distributed.initialize("127.0.0.1:{free_port()}", 2, {process})))"""
  result = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env=script_environment(),
    capture_output=True,
    text=True,
    timeout=HANGS,
  )
  assert result.returncode == 2
  waiting, error = result.stderr.splitlines()
  others = "process 0" if process else "the other 1"
  assert waiting.startswith(f"process {process} of 2 waits for {others} at 127.0.0.1:")
  assert error.startswith(f"error: process {process} of 2 waits for {others} at 127.0.0.1:")


def test_outside_of_the_main_thread_signals_stay_with_the_program():
  def enter_and_leave():
    with Preemption() as preemption:
      return preemption.reached(), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

  before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
  with ThreadPoolExecutor(1) as threads:
    assert threads.submit(enter_and_leave).result() == (False, before)
  assert enter_and_leave()[1] != before
  assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
