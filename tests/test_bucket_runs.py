"""Runs whose work directory is in a bucket, on a server that is killed and refuses requests."""

import json
import os
import random
import re
import select
import signal
from collections.abc import Callable, Iterator

import pytest
from fork_server import Script
from helpers import finish
from PIL import Image
from store_server import BUCKET, MISSING, Refusing, StoreServer
from test_faults import as_flags, assert_same_run, small_config

from gfnet_jax.buckets import BucketPath, _file_system
from gfnet_jax.checkpoints.finding import list_steps
from gfnet_jax.checkpoints.reading import verify

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed"),
  pytest.mark.usefixtures("data_dir"),
  # Of gcsfs and aiohttp, which are not ours.
  pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


@pytest.fixture
def store(tmp_path, monkeypatch) -> Iterator[StoreServer]:
  with StoreServer(tmp_path / "objects") as store:
    use(store.url, monkeypatch)
    yield store
  _file_system.cache_clear()


def use(url: str, monkeypatch) -> None:
  monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
  _file_system.cache_clear()


@pytest.fixture
def run(start) -> Callable[..., list]:
  """run(workdir, *flags, processes) starts train.py; its processes."""

  def run(workdir, *flags, processes: int = 1) -> list:
    return start("train.py", "--workdir", str(workdir), *flags, processes=processes)

  return run


def succeeds(processes: list) -> str:
  """The standard output of process 0 of a run that succeeds."""
  results = finish(processes)
  assert [code for code, *_ in results] == [0] * len(processes), results
  return results[0][1]


def wait_for_checkpoint(process: Script, directory: BucketPath, step: int) -> None:
  """Waits until a run has a complete checkpoint of a step or a later one."""
  watched = os.pidfd_open(process.pid)  # readable at the end of the process
  while max(list_steps(directory), default=0) < step:
    over, _, _ = select.select([watched], [], [], 0.05)
    assert not over, process.stderr.read()
  os.close(watched)


@pytest.mark.parametrize(("processes", "kills"), [(1, 2), (1, 20), (2, 20)])
def test_kills_at_random_moments_change_nothing(tmp_path, store, run, processes, kills):
  """During steps, evaluation, uploads and between; of all processes or of one."""
  flags = as_flags(small_config(num_epochs=3.0 * kills))
  flags += ["--config.stall_timeout=60"] if processes > 1 else []
  expected, home = tmp_path / "undisturbed", BucketPath(f"gs://{BUCKET}/run")
  succeeds(run(expected, *flags, processes=processes))
  steps = 13 * kills
  rng, single = random.Random(0), 0
  for i in range(kills):
    scripts = run(home, *flags, processes=processes)
    wait_for_checkpoint(scripts[0], home / "checkpoints", int((i + rng.random()) / kills * steps))
    select.select([], [], [], rng.uniform(0, 0.5))
    victims = rng.choice([scripts, *([script] for script in scripts)])
    single += len(victims) < processes
    for script in victims:
      script.kill()
    finish(scripts)  # those left alone end by themselves
  succeeds(run(home, *flags, processes=processes))
  assert_same_run(home, expected)
  assert [path.name for path in home.iterdir() if path.name.startswith("lock")] == []
  print(f"survived {kills} kills: {kills - single} of all, {single} of one process of several")


def test_a_signal_another_run_and_what_reads_it(tmp_path, store, run, start, in_process):
  """Stopped, refused to a second run, evaluated, predicted from, exported and tuned."""
  flags, home = as_flags(small_config(num_epochs=200.0)), BucketPath(f"gs://{BUCKET}/a/run")
  [script] = run(home, *flags)
  wait_for_checkpoint(script, home / "checkpoints", 4)
  [(code, _, errors)] = finish(run(home, *flags))
  assert code == 2 and "is in use by another run (process" in errors and errors.count("\n") == 1
  script.send_signal(signal.SIGTERM)
  assert "everything saved; the same command continues" in succeeds([script])
  step = list_steps(home / "checkpoints")[-1]
  [(code, out, errors)] = finish(start("eval.py", "--checkpoint", str(home), processes=1))
  assert code == 0 and "90 images" in out, errors
  image = tmp_path / "digit.png"
  Image.new("L", (8, 8)).save(image)
  [(code, out, errors)] = finish(start("tools/predict.py", str(home), str(image), processes=1))
  assert code == 0 and str(image) in out, errors
  exported = tmp_path / "model.safetensors"
  export = "export", home, exported, "--format", "safetensors"
  code, _, errors = in_process("gfnet_jax/__main__.py", *export)
  assert code == 0 and exported.exists(), errors
  tuned = [*as_flags(small_config()), f"--config.init_checkpoint={home}"]
  said = succeeds(run(f"gs://{BUCKET}/tuned", *tuned))
  assert f"Initial weights: {home}, a gfnet-" in said and f"of step {step}" in said


def test_a_server_that_is_away_for_ten_seconds_costs_no_step(tmp_path, store, run):
  flags, home = as_flags(small_config(num_epochs=600.0)), BucketPath(f"gs://{BUCKET}/run")
  [script] = run(home, *flags)
  wait_for_checkpoint(script, home / "checkpoints", 4)
  store.stop()
  select.select([], [], [], 10)
  store.start()
  newest = list_steps(home / "checkpoints")[-1]
  wait_for_checkpoint(script, home / "checkpoints", newest + 1)
  script.send_signal(signal.SIGTERM)
  said = succeeds([script])
  assert any(words in said for words in ("cannot be reached", "not written to", "a request to"))
  lines = (home / "metrics.jsonl").read_bytes().splitlines()
  steps = [found["step"] for line in lines if "train_loss" in (found := json.loads(line))]
  assert steps == list(range(1, len(steps) + 1))


def test_a_server_that_refuses_at_random_costs_no_checkpoint(tmp_path, store, run, monkeypatch):
  flags, expected = as_flags(small_config()), tmp_path / "expected"
  succeeds(run(expected, *flags))
  with Refusing(store, 503, 0.1) as proxy:
    use(proxy.url, monkeypatch)
    said = succeeds(run(f"gs://{BUCKET}/run", *flags))
  assert proxy.refused > 5 and "could not be written" not in said
  use(store.url, monkeypatch)
  assert_same_run(BucketPath(f"gs://{BUCKET}/run"), expected)


def test_a_server_that_is_gone_ends_the_run_with_2(store, run):
  flags, home = as_flags(small_config()), BucketPath(f"gs://{BUCKET}/run")
  [script] = run(home, *flags)
  wait_for_checkpoint(script, home / "checkpoints", 4)
  store.stop()
  [(code, out, errors)] = finish([script])
  # On a busy machine XLA says that it compiles slowly, in lines of its own.
  alarm = re.compile(r"\S+ .*slow_operation_alarm.*|\**|.*Very slow compile\?.*")
  *warnings, error = (line for line in errors.splitlines() if not alarm.fullmatch(line))
  assert code == 2 and error.startswith("error: the checkpoint of step"), errors
  assert all(line.startswith("warning: heartbeats not written") for line in warnings), errors
  assert "could not be written to gs://" in error and "cannot be reached" in out
  store.start()
  directory = home / "checkpoints"
  for step in list_steps(directory):
    verify(directory, step)


@pytest.mark.parametrize(
  ("status", "message"),
  [(None, "gs://nowhere does not exist; create the bucket"), (403, "no permission: ")],
)
def test_a_bucket_that_cannot_be_used_is_one_line(store, run, monkeypatch, status, message):
  """Before the first step, and before the data are opened."""
  with Refusing(store, status or 500, 1.0 if status else 0.0) as proxy:
    use(proxy.url, monkeypatch)
    name = BUCKET if status else "nowhere"
    [(code, _, errors)] = finish(run(f"gs://{name}/run", *as_flags(small_config())))
  assert code == 2 and message in errors and errors.count("\n") == 1, errors
