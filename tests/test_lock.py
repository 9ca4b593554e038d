"""One run in a work directory: who is refused, what a killed run leaves, what is noticed."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from helpers import finish, wait_for_line

from configs.digits import get_config
from gfnet_jax.checkpoints.finding import list_steps
from gfnet_jax.errors import UserError
from gfnet_jax.training import lock as module
from gfnet_jax.training import loop
from gfnet_jax.training.heartbeat import _start_time, is_running, process_in, this_process
from gfnet_jax.training.lock import MISSES, WATCH, Lock

IN_USE = (
  r"run is in use by another run \(.*\); wait for its end or stop it, or set another --workdir"
)


@pytest.fixture
def workdir(tmp_path) -> Path:
  (tmp_path / "run" / "heartbeats").mkdir(parents=True)
  return tmp_path / "run"


@pytest.fixture
def beats(monkeypatch) -> Callable[[Callable[[int], None]], list[int]]:
  """beats(happens) calls happens(0), happens(1), ... instead of waiting; returns these numbers."""

  def install(happens):
    numbers, passed = itertools.count(), []

    def sleep(_):
      passed.append(next(numbers))
      happens(passed[-1])

    monkeypatch.setattr(module.time, "sleep", sleep)
    return passed

  return install


def nothing(_: int) -> None:
  pass


def entry(**changes) -> dict:
  return {"run": "other", "since": "today", **this_process()._asdict()} | changes


def heartbeat(
  workdir: Path, beat: int, process: int = 0, finished: bool = False, **changes
) -> None:
  signs = {"beat": beat, "progress": 1, "finished": finished}
  path = workdir / "heartbeats" / f"process-{process}.json"
  path.write_text(json.dumps(entry(**changes) | signs))


def test_a_second_run_is_told_who_holds_the_directory(workdir, beats):
  passed = beats(nothing)
  with Lock(workdir):
    with pytest.raises(UserError, match=IN_USE) as error, Lock(workdir):
      pass
    assert f"process {os.getpid()} of {this_process().user} on {this_process().host}, since 2" in (
      str(error.value)
    )
  with Lock(workdir):
    pass
  assert not (workdir / "lock.json").exists()
  assert not passed


def ended_process() -> int:
  process = subprocess.Popen([sys.executable, "-c", ""])
  process.wait()
  return process.pid


@pytest.mark.parametrize("left", ["a killed process", "a number given again", "a zombie"])
def test_what_a_run_of_this_machine_left_is_taken_over_at_once(workdir, beats, capsys, left):
  process = subprocess.Popen([sys.executable, "-c", ""])
  os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # over, but its parent did not ask
  if left == "a killed process":
    process.wait()
  pid = os.getpid() if left == "a number given again" else process.pid
  holder = entry(pid=pid, started="17")
  (workdir / "lock.json").write_text(json.dumps(holder))
  heartbeat(workdir, 5, pid=pid, started="17")
  passed = beats(nothing)
  with Lock(workdir) as lock:
    assert json.loads((workdir / "lock.json").read_text())["run"] == lock.run
  assert not passed  # at once
  assert capsys.readouterr().out == ""
  process.wait()


ELSEWHERE = {
  "rebooted": dict(machine="another boot pid:[1]"),
  "another host": dict(host="far", machine="its boot pid:[1]"),
  "another container": dict(machine=f"{this_process().machine.split()[0]} pid:[1]"),
  "no Linux": dict(machine=""),
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_a_run_of_another_machine_is_over_if_it_gives_no_sign_of_life(
  workdir, beats, capsys, where
):
  (workdir / "lock.json").write_text(json.dumps(entry(**ELSEWHERE[where])))
  heartbeat(workdir, 5, **ELSEWHERE[where])
  passed = beats(nothing)
  with Lock(workdir):
    pass
  assert len(passed) == WATCH
  assert capsys.readouterr().out.count("run was in use by process") == 1


@pytest.mark.parametrize("where", ELSEWHERE)
@pytest.mark.parametrize("process", [0, 3])
def test_a_run_of_another_machine_that_beats_is_not_disturbed(workdir, beats, where, process):
  (workdir / "lock.json").write_text(json.dumps(entry(**ELSEWHERE[where])))
  heartbeat(workdir, 5, process, **ELSEWHERE[where])
  beats(lambda i: heartbeat(workdir, 5 + i // 7, process, **ELSEWHERE[where]))
  with pytest.raises(UserError, match=IN_USE), Lock(workdir):
    pass
  assert json.loads((workdir / "lock.json").read_text())["run"] == "other"


def test_a_process_that_survived_its_first_one_counts(workdir, beats):
  """Of two processes of this machine, process 0 was killed."""
  parent = dict(pid=os.getppid(), started=_start_time(os.getppid()))
  (workdir / "lock.json").write_text(json.dumps(entry(pid=ended_process())))
  heartbeat(workdir, 5, 1, **parent)
  beats(nothing)
  with pytest.raises(UserError, match=IN_USE), Lock(workdir):
    pass
  heartbeat(workdir, 5, 1, finished=True, **parent)
  with Lock(workdir):
    pass


def test_of_two_that_take_over_one_wins(workdir, beats, monkeypatch):
  """Both found the same run over; the other one has already replaced its lock."""
  judged = Lock._holder_that_is_over

  def another_was_faster(self):
    holder = judged(self)
    (workdir / "lock.json").write_text(json.dumps(entry(run="rival")))
    return holder

  monkeypatch.setattr(Lock, "_holder_that_is_over", another_was_faster)
  (workdir / "lock.json").write_text(json.dumps(entry(pid=ended_process())))
  beats(nothing)
  with pytest.raises(UserError, match=IN_USE), Lock(workdir):
    pass
  assert json.loads((workdir / "lock.json").read_text())["run"] == "rival"
  assert [path.name for path in workdir.glob("*lock*")] == ["lock.json"]


def test_a_run_of_another_machine_that_ends_while_one_watches(workdir, beats):
  """Its last heartbeat, and its lock that goes, are no signs of life."""
  (workdir / "lock.json").write_text(json.dumps(entry(**ELSEWHERE["another host"])))
  heartbeat(workdir, 5, **ELSEWHERE["another host"])

  def end(i):
    heartbeat(workdir, 6, finished=True, **ELSEWHERE["another host"])
    (workdir / "lock.json").unlink(missing_ok=True)

  passed = beats(end)
  with Lock(workdir) as lock:
    assert json.loads((workdir / "lock.json").read_text())["run"] == lock.run
  assert len(passed) == 1


def make_fifo(path: Path) -> None:
  os.mkfifo(path)


STRANGE = {
  "empty": lambda path: path.write_text(""),
  "brackets": lambda path: path.write_text("[" * 100_000),
  "a list": lambda path: path.write_text("[1, 2]"),
  "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe\0"),
  "huge": lambda path: path.write_text(" " * 10**6),
  "a number too large": lambda path: path.write_text(json.dumps(entry(pid=10**30))),
  "a number of all processes": lambda path: path.write_text(json.dumps(entry(pid=-1))),
  "other types": lambda path: path.write_text(json.dumps(entry(pid=True, host=[], run={}))),
  "a FIFO": make_fifo,
  "a link to nothing": lambda path: path.symlink_to("nothing"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_locks_and_heartbeats_are_no_traceback(workdir, beats, name):
  STRANGE[name](workdir / "lock.json")
  STRANGE[name](workdir / "heartbeats/process-0.json")
  beats(nothing)
  with Lock(workdir):
    pass


def test_a_directory_in_the_place_of_the_lock_is_one_line(workdir, beats):
  (workdir / "lock.json").mkdir()
  beats(nothing)
  with pytest.raises(UserError, match=r"cannot write .*lock.json \(.*\); make room, or remove it"):
    Lock(workdir).__enter__()
  assert [path.name for path in workdir.iterdir() if "tmp" in path.name] == []


def test_a_directory_that_is_gone_is_noticed(workdir, beats):
  beats(nothing)
  message = "was moved or removed during the run"
  with pytest.raises(UserError, match=message), Lock(workdir) as lock:
    workdir.rename(workdir.with_name("elsewhere"))
    for _ in range(MISSES - 1):
      lock.look()
    lock.check()  # a moment is not enough
    lock.look()
    with pytest.raises(UserError, match=message):
      lock.check()
  with pytest.raises(UserError, match=message), Lock(workdir.with_name("elsewhere")):
    workdir.with_name("elsewhere").rename(workdir)  # noticed at the end, too
  workdir.rename(workdir.with_name("third"))
  with pytest.raises(UserError, match=message), Lock(workdir.with_name("third")):
    workdir.with_name("third").rename(workdir)
    raise FileNotFoundError("which is explained by it")


def test_a_moment_without_the_file_is_none(workdir, beats, monkeypatch):
  beats(nothing)
  with Lock(workdir) as lock:
    text = (workdir / "lock.json").read_text()
    (workdir / "lock.json").unlink()
    lock.look()
    (workdir / "lock.json").write_text(text)
    lock.confirm()
    monkeypatch.setattr(Path, "stat", fails := lambda *_, **__: (_ for _ in ()).throw(OSError(116)))
    monkeypatch.setattr(Path, "lstat", fails)
    for _ in range(9):
      lock.look()  # the network is away
    monkeypatch.undo()
    lock.check()


def test_a_run_that_was_taken_over_ends(workdir, beats):
  beats(nothing)
  with pytest.raises(UserError, match="was taken over by another run"), Lock(workdir) as lock:
    (workdir / "lock.json").write_text(json.dumps(entry()))
    lock.look()
    lock.check()
  assert json.loads((workdir / "lock.json").read_text())["run"] == "other"


def test_an_interrupt_leaves_the_lock_of_another_run(workdir, beats):
  beats(nothing)
  with pytest.raises(KeyboardInterrupt), Lock(workdir):
    (workdir / "lock.json").write_text(json.dumps(entry()))
    raise KeyboardInterrupt
  assert json.loads((workdir / "lock.json").read_text())["run"] == "other"
  assert (workdir / "heartbeats").exists()


def test_the_end_of_process_0_is_no_loss(workdir, beats, monkeypatch):
  beats(nothing)
  with Lock(workdir) as lock:
    (workdir / "lock.json").unlink()
    heartbeat(workdir, 9, finished=True, run=lock.run)
    lock.confirm()


def test_whether_a_process_runs():
  mine = this_process()
  assert is_running(mine) is True
  assert is_running(mine._replace(started="0")) is False
  assert is_running(mine._replace(pid=ended_process())) is False
  assert is_running(mine._replace(machine="")) is None
  assert process_in(mine._asdict()) == mine
  assert process_in(mine._asdict() | {"pid": 0}) is None


# Whole runs.


def small_config():
  """Compiled only once for all tests that have it."""
  config = get_config()
  config.update(num_epochs=3.0, eval_every_epochs=1.0, log_every_steps=1)
  config.model.update(embed_dim=8, depth=1)
  config.optimizer.warmup_epochs = 1.0
  config.data.update(train_split="train[:25%]", batch_size=80)
  return config


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize(
  "how",
  [
    "moved",
    pytest.param("removed", marks=pytest.mark.slow),
    pytest.param("replaced", marks=pytest.mark.slow),
  ],
)
def test_a_run_whose_directory_goes_away_is_no_success(tmp_path, monkeypatch, how):
  """It is said, and no new directory is left in its place."""
  workdir, away, to_devices = tmp_path / "run", tmp_path / "away", loop.to_devices

  def away_after_three(batches, mesh):
    for i, batch in enumerate(to_devices(batches, mesh)):
      if i == 3:
        workdir.rename(away)
        if how == "removed":
          shutil.rmtree(away)
        if how == "replaced":
          workdir.mkdir()
      yield batch

  monkeypatch.setattr(loop, "to_devices", away_after_three)
  monkeypatch.setattr(module, "BEAT", 0.01)
  with (
    jax.numpy_dtype_promotion("standard"),
    pytest.raises(UserError, match="run was moved or removed during the run"),
  ):
    loop.train(small_config(), workdir)
  assert how == "replaced" or not workdir.exists()
  assert list_steps(workdir / "checkpoints") == []


LONG = ("--config.num_epochs=400", "--config.eval_every_epochs=1", "--config.data.batch_size=320")
LONG = (*LONG, "--config.model.embed_dim=8", "--config.model.depth=1")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_two_runs_in_one_directory(tmp_path, start, script, processes):
  """The second ends with 2 and does no harm; after a kill the directory is free again."""
  workdir = tmp_path / "run"
  first = start("train.py", "--workdir", workdir, *LONG, processes=processes)
  wait_for_line(first[0], "epoch")
  second = script("train.py", "--workdir", workdir, *LONG)
  assert second.returncode == 2
  error = second.stderr.splitlines()[-1]
  assert f"is in use by another run (process {first[0].pid} of " in error
  assert first[0].poll() is None
  for process in first:
    process.kill()
  finish(first)
  third = start("train.py", "--workdir", workdir, *LONG, processes=processes)
  wait_for_line(third[0], "epoch")
  third[0].send_signal(signal.SIGTERM)
  assert [code for code, *_ in finish(third)] == [0] * processes


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_directory_moved_under_real_processes(tmp_path, start, processes):
  workdir = tmp_path / "run"
  run = start("train.py", "--workdir", workdir, *LONG, processes=processes)
  wait_for_line(run[0], "epoch")
  workdir.rename(tmp_path / "elsewhere")
  results = finish(run)
  assert [code for code, *_ in results] == [2] * processes, results
  assert all("run was moved or removed during the run" in errors for *_, errors in results)


@pytest.mark.slow
def test_a_run_that_stood_still_while_it_was_taken_over(tmp_path, start):
  """Suspended, it cannot be told from a dead one of another machine; it ends when it wakes."""
  workdir = tmp_path / "run"
  run = start("train.py", "--workdir", workdir, *LONG, processes=1)
  wait_for_line(run[0], "epoch")
  run[0].send_signal(signal.SIGSTOP)
  (workdir / "lock.json").write_text(json.dumps(entry()))
  run[0].send_signal(signal.SIGCONT)
  [(code, _, errors)] = finish(run)
  assert code == 2
  assert "was taken over by another run" in errors
