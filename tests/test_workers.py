"""Real processes: the same batches, mixed, for any number; and none that outlives its parent."""

import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from dump_batches import BATCH_SIZE
from fork_server import Script
from helpers import HANGS, ROOT, finish, free_port, script_environment, wait_for_line
from image_sets import write_folder
from worker_samples import Deadly, Mute, Numbers

from gfnet_jax.data import workers as workers_module
from gfnet_jax.data.workers import iterate_batches
from gfnet_jax.errors import UserError

ENDLESS = 10**6  # steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("images")
  write_folder(folder, 600)
  return folder


@pytest.fixture
def start(folder, tmp_path, scripts):
  """start(processes, workers, first, steps) starts the processes that print batches of one run.

  Each prints its share: a line of JSON with the checksums of its rows for every batch.
  """
  environment = script_environment(fusion_emitters=True)
  environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": "."}
  with contextlib.ExitStack() as stack:

    def run(processes: int, *numbers: int) -> list[Script]:
      commands = [
        ("tests/dump_batches.py", folder, process, processes, *numbers)
        for process in range(processes)
      ]
      port = free_port()
      started = [scripts.start(*c, port, env=environment, own_group=True) for c in commands]
      for process in started:
        stack.enter_context(process)
        stack.callback(process.kill)
      return started

    yield run


def global_batches(shares: list[Script]) -> list[list[str]]:
  """The checksums of the rows of global batches, from processes run side by side."""
  lines = []
  for code, output, messages in finish(shares):
    assert code == 0, messages
    lines.append([json.loads(line) for line in output.splitlines() if line.startswith('["')])
  return [list(itertools.chain(*rows)) for rows in zip(*lines, strict=True)]


def test_batches_are_the_same_for_other_processes_and_workers_and_after_resuming(start):
  whole, shared, resumed = start(1, 0, 0, 12), start(2, 2, 0, 12), start(2, 0, 5, 12)
  expected = global_batches(whole)
  assert len(expected) == 12
  assert all(len(set(batch)) == BATCH_SIZE for batch in expected)
  assert global_batches(shared) == expected
  assert global_batches(resumed) == expected[5:]


@pytest.mark.slow
def test_fifty_batches_are_the_same_for_all_processes_and_workers(start):
  expected = global_batches(start(1, 0, 0, 50))
  assert len(expected) == 50
  for processes, workers in ((1, 1), (1, 4), (2, 0), (2, 1), (4, 0), (4, 1)):
    assert global_batches(start(processes, workers, 0, 50)) == expected
  for first, processes in ((1, 2), (25, 4), (49, 3)):
    assert global_batches(start(processes, 0, first, 50)) == expected[first:]


def children(pid: int) -> list[int]:
  """The worker processes of a process."""
  found = []
  for task in Path(f"/proc/{pid}/task").iterdir():
    found += map(int, (task / "children").read_text().split())
  return [pid for pid in found if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def is_running(pid: int) -> bool:
  try:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


def wait_until(condition) -> None:
  deadline = time.monotonic() + HANGS
  while not condition():
    assert time.monotonic() < deadline, "waited in vain"
    time.sleep(0.02)


@pytest.fixture
def reading(start):
  """A process with two workers that reads without end, and its workers."""
  [process] = start(1, 2, 0, ENDLESS)
  for _ in range(4):  # both workers have delivered, so both are ready
    wait_for_line(process, '["')
  workers = children(process.pid)
  assert len(workers) == 2
  return process, workers


def test_a_killed_worker_is_an_error_with_its_name(reading):
  process, workers = reading
  os.kill(workers[1], signal.SIGKILL)
  [(code, _, error)] = finish([process])
  assert code == 2
  assert f"error: the input worker process {workers[1]} ended with exit code -9 (SIGKILL)" in error
  assert "Traceback" not in error
  assert not any(map(is_running, workers))


def test_workers_die_with_a_killed_parent(reading):
  process, workers = reading
  process.kill()
  wait_until(lambda: not any(map(is_running, workers)))


def test_ctrl_c_ends_everything(reading):
  process, workers = reading
  os.killpg(process.pid, signal.SIGINT)
  [(code, _, error)] = finish([process])
  assert code == 130
  wait_until(lambda: not any(map(is_running, workers)))
  assert "Traceback" not in error


@pytest.mark.parametrize("workers", [0, 1])
def test_an_iterator_that_is_left_open_does_not_hold_up_the_end(folder, tmp_path, workers):
  # At module level: it is closed when the interpreter is taken apart.
  code = f"""if __name__ == "__main__":
    from gfnet_jax.data.pipeline import Reading, train_batches
    from gfnet_jax.data.samples import Share
    from gfnet_jax.data.sources.folder import FolderSource
    from gfnet_jax.data.transforms import TrainTransform
    batches = train_batches(
      FolderSource({str(folder)!r}, "train"), TrainTransform(image_size=40), seed=0,
      share=Share(8), first_batch=0, num_batches=10**6, reading=Reading(1, 2, {workers}),
    )
    next(batches)"""
  script = tmp_path / "open.py"
  script.write_text(code)
  environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": "."}
  subprocess.run([sys.executable, script], cwd=ROOT, env=environment, timeout=HANGS, check=True)


def read(samples, *, workers=1, first_batch=0):
  """Batches of two samples, made by one thread per worker, one ahead."""
  positions = range(samples.count)
  order = (positions[i : i + 2] for i in positions[2 * first_batch :: 2])
  return iterate_batches(samples, order, threads=1, prefetch=1, workers=workers)


def expected(batch: int) -> np.ndarray:
  return np.array([[2 * batch] * 3, [2 * batch + 1] * 3])


def descriptors(pid: int) -> int:
  return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def shared_memory(pid: int) -> set[str]:
  """Where the locks and the shared memory of multiprocessing are."""
  maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
  return {line for line in maps if "/dev/shm" in line}


def test_workers_share_no_lock_and_leave_nothing_when_closed_early():
  multiprocessing.resource_tracker.ensure_running()  # it stays, and so does its descriptor
  before, others = descriptors(os.getpid()), children(os.getpid())
  shared_before = shared_memory(os.getpid())  # of tqdm, for one, if another test was here
  batches = read(Numbers(100), workers=2, first_batch=1)
  taken = [next(batches)["x"] for _ in range(3)]
  assert all(array.ctypes.data % 64 == 0 for array in taken)  # jax need not copy them
  on_device = jax.device_put(taken[0])
  pids = [pid for pid in children(os.getpid()) if pid not in others]
  assert len(pids) == 2
  assert shared_memory(os.getpid()) == shared_before
  assert not any(map(shared_memory, pids))
  batches.close()
  assert children(os.getpid()) == others
  assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
  np.testing.assert_array_equal(taken, [*map(expected, (1, 2, 3))])
  taken[2] += 1  # is the consumer's own
  taken.clear()
  np.testing.assert_array_equal(on_device, expected(1))
  assert descriptors(os.getpid()) <= before + 1  # jax may not have copied


def test_every_batch_comes_once_and_descriptors_do_not_pile_up():
  here, there = [], []
  for i, batch in enumerate(read(Numbers(399))):
    np.testing.assert_array_equal(batch["x"], expected(i)[: len(batch["x"])])
    here.append(descriptors(os.getpid()))
    if i < 150:  # then it may have ended
      [process] = multiprocessing.active_children()
      there.append(descriptors(process.pid))
  assert len(here) == 200
  assert len(batch["x"]) == 1
  assert max(here[100:]) <= max(here[:10])
  assert max(there) <= min(there) + 5


def test_no_more_workers_are_started_than_there_are_batches():
  batches = read(Numbers(3), workers=3, first_batch=1)
  next(batches)
  assert len(multiprocessing.active_children()) == 1
  assert list(batches) == []
  assert list(read(Numbers(4), workers=1, first_batch=2)) == []


@pytest.mark.parametrize(
  ("event", "error", "message", "has_traceback"),
  [
    ("raise_user_error", UserError, "mend it", False),
    ("raise_value_error", ValueError, "a bug", True),
    ("raise_unpicklable", RuntimeError, "Unpicklable: of 7 and 8", True),
    ("raise_stop_iteration", RuntimeError, "StopIteration", True),
  ],
)
def test_an_exception_in_a_worker_comes_in_its_place(event, error, message, has_traceback):
  batches = read(Numbers(100, at=7, event=event))
  for i in range(3):
    np.testing.assert_array_equal(next(batches)["x"], expected(i))
  with pytest.raises(error, match=message) as info:
    next(batches)
  assert (
    any(f"in {event}" in note for note in getattr(info.value, "__notes__", [])) is has_traceback
  )
  assert not multiprocessing.active_children()


@pytest.mark.parametrize(
  ("samples", "message"),
  [
    (Deadly(100), r"-9 \(SIGKILL\)"),
    (Numbers(100, at=7, event="kill"), r"-9 \(SIGKILL\)"),
    (Numbers(100, at=7, event="exit_with_0"), r"0 \(before its last batch\)"),
  ],
)
def test_a_worker_that_ends_by_itself_is_an_error_with_its_name(samples, message):
  taken = 0
  with pytest.raises(UserError, match=rf"worker process \d+ ended with exit code {message}"):
    for batch in read(samples):
      np.testing.assert_array_equal(batch["x"], expected(taken))
      taken += 1
  assert taken <= 3
  assert not multiprocessing.active_children()


def test_a_request_that_cannot_be_read_is_an_error_and_no_waiting(capfd):
  batches = iterate_batches(Numbers(4), [[0], [Mute()]], threads=1, prefetch=2, workers=1)
  with pytest.raises(UserError, match=r"ended with exit code 1 \(an error of its own\)"):
    list(batches)
  assert "a bug" in capfd.readouterr().err


def test_a_worker_is_never_further_ahead_than_documented_and_can_be_killed_there(tmp_path):
  log = tmp_path / "log"
  batches = read(Numbers(100, log=str(log)))
  next(batches)
  # Beside the one that was taken, `prefetch` batches of two samples.
  wait_until(lambda: log.stat().st_size >= 4)
  [process] = multiprocessing.active_children()
  process.kill()
  with pytest.raises(UserError, match=f"process {process.pid} ended with exit code -9"):
    for i, batch in enumerate(batches, 1):
      np.testing.assert_array_equal(batch["x"], expected(i))
  assert log.stat().st_size == 4


def test_signals_to_the_group_do_not_reach_workers_that_are_starting(monkeypatch):
  def signal_first(connection, message):
    for process in multiprocessing.active_children():
      os.kill(process.pid, signal.SIGINT)
      os.kill(process.pid, signal.SIGTERM)
    send(connection, message)

  send = workers_module.send
  monkeypatch.setattr(workers_module, "send", signal_first)
  batches = read(Numbers(10))
  np.testing.assert_array_equal([batch["x"] for batch in batches], [*map(expected, range(5))])
  assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_what_cannot_be_sent_to_workers_is_said_in_one_line():
  class Local:
    def __getitem__(self, index):
      return {"x": index}

  with pytest.raises(UserError, match=r"cannot be sent to worker processes .*picklable, or set"):
    next(iterate_batches(Local(), [range(2)], threads=1, prefetch=1, workers=1))
