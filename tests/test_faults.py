"""Runs that are killed, damaged, starved of disk or fed with what is not finite."""

import contextlib
import functools
import gc
import itertools
import json
import os
import random
import resource
import select
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fork_server import Script
from helpers import finish, read_lines, wait_for_line

from configs.digits import get_config
from gfnet_jax.checkpoints.finding import list_steps
from gfnet_jax.checkpoints.reading import verify
from gfnet_jax.checkpoints.store import Checkpoints
from gfnet_jax.data.pipeline import DataError, Reading, train_batches
from gfnet_jax.data.samples import Share
from gfnet_jax.data.sources.open import open_source
from gfnet_jax.data.transforms import TrainTransform
from gfnet_jax.errors import UserError
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.models.functional import split
from gfnet_jax.training import loop, program
from gfnet_jax.training.resume import newest_whole
from gfnet_jax.training.writer import MetricWriter

pytestmark = pytest.mark.usefixtures("data_dir")


@pytest.fixture(autouse=True)
def _standard_promotion():
  with jax.numpy_dtype_promotion("standard"):  # optax multiplies integers and floats
    yield


def small_config(**changes):
  config = get_config()
  config.num_epochs = 3.0  # 13 steps
  config.eval_every_epochs = 1.0
  config.log_every_steps = 1
  config.optimizer.warmup_epochs = 1.0
  config.data.update(train_split="train[:25%]", batch_size=80)  # 359 images
  config.data.update(eval_split="test[:25%]", eval_batch_size=32)  # 90 images
  config.model.update(embed_dim=8, depth=1)
  config.update(changes)
  return config


def as_flags(config) -> list[str]:
  return [
    *(f"--config.{name}={config[name]}" for name in ("num_epochs", "eval_every_epochs")),
    f"--config.log_every_steps={config.log_every_steps}",
    f"--config.optimizer.warmup_epochs={config.optimizer.warmup_epochs}",
    *(
      f"--config.data.{name}={config.data[name]}"
      for name in ("train_split", "batch_size", "eval_split", "eval_batch_size")
    ),
    f"--config.model.embed_dim={config.model.embed_dim}",
    f"--config.model.depth={config.model.depth}",
  ]


def arrays(workdir: Path) -> dict[str, np.ndarray]:
  _, params = split(load_model(workdir).model)
  return {name: np.asarray(value) for name, value in params.items()}


def assert_same_run(found: Path, expected: Path) -> None:
  found_arrays = arrays(found)
  for name, value in arrays(expected).items():
    np.testing.assert_array_equal(found_arrays[name], value, err_msg=name)
  assert (found / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()


def last_step(workdir: Path) -> int:
  """Of the metrics that a run has written so far."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def kill_after(run: list[Script], workdir: Path, step: int, rng: random.Random) -> bool:
  """Kills one or all processes of a run at most a tenth of a second after a step.

  Returns:
    Whether only one of several was killed.
  """
  wait_for_line(run[0], "Steps:")
  watched = os.pidfd_open(run[0].pid)  # readable at the end of the process
  while last_step(workdir) < step:
    over, _, _ = select.select([watched], [], [], 0.01)
    assert not over, run[0].stderr.read()
  select.select([watched], [], [], rng.uniform(0, 0.1))
  os.close(watched)
  victims = rng.choice([run, *([process] for process in run)])
  for process in victims:
    process.kill()
  finish(run)  # those left alone end by themselves
  return len(victims) < len(run)


@pytest.mark.parametrize(
  ("processes", "kills"),
  [
    (1, 1),
    pytest.param(1, 30, marks=pytest.mark.slow),
    pytest.param(2, 30, marks=pytest.mark.slow),
  ],
)
def test_kills_at_random_moments_change_nothing(tmp_path, start, processes, kills):
  """During steps, evaluation, checkpoints and between; of all processes or of one."""
  config = small_config(num_epochs=max(9.0, 3.0 * kills))
  # Those that are left alone end soon.
  flags = (*as_flags(config), *(["--config.stall_timeout=30"] if processes > 1 else []))
  expected, workdir = tmp_path / "undisturbed", tmp_path / "run"
  results = finish(start("train.py", "--workdir", expected, *flags, processes=processes))
  assert [code for code, *_ in results] == [0] * processes, results

  rng, single = random.Random(0), 0
  for i in range(kills):  # spread over the whole run
    step = int((i + rng.random()) / (kills + 1) * last_step(expected))
    run = start("train.py", "--workdir", workdir, *flags, processes=processes)
    single += kill_after(run, workdir, step, rng)
  results = finish(start("train.py", "--workdir", workdir, *flags, processes=processes))
  assert [code for code, *_ in results] == [0] * processes, results
  assert_same_run(workdir, expected)
  print(f"survived {kills} kills: {kills - single} of all, {single} of one process of several")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
  """The work directory of a small run."""
  workdir = tmp_path_factory.mktemp("trained") / "run"
  with jax.numpy_dtype_promotion("standard"):
    loop.train(small_config(), workdir)
  return workdir


def test_every_flipped_bit_and_truncation_is_detected(trained, tmp_path, capsys):
  """200 flips and 50 truncations, spread over files and bytes alike.

  Each lets a run continue from the checkpoint before, and say so.
  """
  directory = tmp_path / "checkpoints"
  shutil.copytree(trained / "checkpoints", directory)
  *_, before, step = list_steps(directory)
  files = sorted(p for p in (directory / f"{step:08d}").rglob("*") if p.is_file())
  files = [path for path in files if path.stat().st_size]
  rng = random.Random(0)
  for i in range(250):
    path = (
      files[i % len(files)] if i % 2 else rng.choices(files, [f.stat().st_size for f in files])[0]
    )
    content = path.read_bytes()
    if i < 200:
      damaged = bytearray(content)
      damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
      path.write_bytes(damaged)
    else:
      path.write_bytes(content[: rng.randrange(len(content))])
    assert newest_whole(directory) == before
    assert f"{step:08d} is damaged: " in capsys.readouterr().out
    [aside] = directory.glob("damaged-*")
    aside.rename(directory / f"{step:08d}")
    path.write_bytes(content)
  verify(directory, step)


# Orbax leaves threads of its own behind when a write fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_survived(tmp_path, capsys):
  """Files may not grow beyond 1 kB during the first checkpoints: as if the disk were full."""
  workdir = tmp_path / "run"
  save = Checkpoints.save
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def save_on_a_full_disk(self, step, trees, metadata):
    full = step < 10
    if full:
      resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    save(self, step, trees, metadata)
    self.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)

  with pytest.MonkeyPatch.context() as patch, _ignored(signal.SIGXFSZ):
    patch.setattr(Checkpoints, "save", save_on_a_full_disk)
    results = loop.train(small_config(), workdir)
  printed = capsys.readouterr().out
  assert "the checkpoint of step 4 could not be written" in printed
  assert "the next one will be tried" in printed
  assert results["images"] == 90
  assert list_steps(workdir / "checkpoints")[-1] == 13
  assert not list((workdir / "checkpoints").glob(".pending-*"))


@contextlib.contextmanager
def _ignored(signal_number):
  before = signal.signal(signal_number, signal.SIG_IGN)
  yield
  signal.signal(signal_number, before)


@pytest.fixture
def poison(monkeypatch):
  """poison(config, index) makes the loss of the batch of this index NaN."""

  def poison(config, index: int) -> None:
    batches = train_batches(
      open_source(config.data, config.data.train_split),
      TrainTransform(image_size=8, **config.augment),
      seed=config.seed,
      share=Share(config.data.batch_size),
      first_batch=index,
      num_batches=index + 1,
      reading=Reading(),
    )
    labels = next(batches)["label"]
    make_objective = program.make_objective

    @functools.wraps(make_objective)
    def make_poisoned(*args):
      objective = make_objective(*args)

      def poisoned(params, teacher_params, batch, key):
        result = objective(params, teacher_params, batch, key)
        poison = (batch["label"] == labels).all()
        return result._replace(loss=jnp.where(poison, jnp.nan, result.loss))

      return poisoned

    monkeypatch.setattr(program, "make_objective", make_poisoned)

  return poison


def steps_and_losses(workdir: Path) -> dict[int, float]:
  lines = read_lines(workdir / "metrics.jsonl")
  return {line["step"]: line["train_loss"] for line in lines if "train_loss" in line}


def test_a_loss_that_is_not_finite_stops_the_run_by_default(poison, tmp_path, trained):
  config = small_config(on_nonfinite="stop")
  poison(config, 5)
  with pytest.raises(UserError, match=r"the loss of step 6 \(batch 5\) is not finite; the state"):
    loop.train(config, tmp_path / "run")
  assert list_steps(tmp_path / "run" / "nonfinite") == [5]
  clean = steps_and_losses(trained)
  assert steps_and_losses(tmp_path / "run") == {step: clean[step] for step in range(1, 6)}


def test_it_can_be_skipped(poison, tmp_path):
  config = small_config(on_nonfinite="skip")
  poison(config, 5)
  loop.train(config, tmp_path / "run")
  lines = [
    line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "skipped_steps" in line
  ]
  assert [line["skipped_steps"] for line in lines] == [0] * 5 + [1] * 8


@pytest.mark.parametrize("log_every_steps", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_it_can_be_rolled_back(poison, tmp_path, capsys, trained, log_every_steps):
  """Back to step 4, then on without batch 5, which every later step notices."""
  config = small_config(on_nonfinite="rollback", log_every_steps=log_every_steps)
  poison(config, 5)
  loop.train(config, tmp_path / "run")
  assert (
    "step 6 (batch 5) is not finite; continuing from the last checkpoint" in capsys.readouterr().out
  )
  found, clean = steps_and_losses(tmp_path / "run"), steps_and_losses(trained)
  assert list(found) == [*range(log_every_steps, 13, log_every_steps), 13]
  assert all(np.isfinite(list(found.values())))
  if log_every_steps == 1:
    assert {step: found[step] for step in range(1, 6)} == {
      step: clean[step] for step in range(1, 6)
    }
    assert found[6] != clean[6]


def test_what_is_not_finite_is_not_saved(poison, tmp_path):
  """Met by an evaluation before the next line of metrics; and mended by another policy."""
  config = small_config(on_nonfinite="stop", log_every_steps=100)
  poison(config, 5)
  with pytest.raises(UserError, match="the loss of step 6"):
    loop.train(config, tmp_path / "run")
  assert list_steps(tmp_path / "run" / "checkpoints")[-1] == 4
  config.on_nonfinite = "skip"
  assert loop.train(config, tmp_path / "run")["images"] == 90
  config.on_nonfinite = "stop"  # a run with skipped steps in its past is not frozen
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "00000013")
  assert loop.train(config, tmp_path / "run")["images"] == 90


@pytest.mark.parametrize(
  ("keep_every", "expected"),
  [(0.0, []), (1.0, [4, 9, 13]), (0.5, [2, 4, 7, 9, 11, 13]), (0.01, list(range(1, 14)))],
)
def test_which_checkpoints_are_kept(keep_every, expected):
  """In three epochs of 4.49 steps."""
  config = small_config()
  config.checkpoints.keep_every_epochs = keep_every
  run = SimpleNamespace(config=config, inputs=SimpleNamespace(steps_per_epoch=359 / 80))
  kept = loop.kept_steps(run)
  assert [step for step in range(1, 14) if kept.due(step)] == expected


@pytest.mark.slow
@pytest.mark.parametrize(
  ("keep_every", "eval_every", "kept"),
  [(1.0, 2.5, [4, 9, 13]), (0.5, 3.0, [2, 4, 7, 9, 11, 13]), (2.0, 0.75, [9, 13])],
)
def test_what_is_to_be_kept_is_saved_between_evaluations(tmp_path, keep_every, eval_every, kept):
  """In three epochs of 4.49 steps; the last and the best evaluation are kept as well."""
  config = small_config(num_epochs=3.0, eval_every_epochs=eval_every, log_every_steps=9)
  config.checkpoints.update(keep_every_epochs=keep_every, keep_last=1)
  loop.train(config, tmp_path / "run")
  evaluations = [x for x in read_lines(tmp_path / "run" / "metrics.jsonl") if "eval_top1" in x]
  best = max(evaluations, key=lambda x: (x["eval_top1"], x["step"]))["step"]
  assert set(list_steps(tmp_path / "run" / "checkpoints")) == {*kept, best}


@pytest.mark.slow
def test_a_run_whose_steps_were_skipped_is_no_success(tmp_path):
  """Also when it is started once more."""
  config = small_config(on_nonfinite="skip", log_every_steps=9)
  config.optimizer.update(learning_rate=1e38, clip_norm=0.0, warmup_epochs=0.0)
  for _ in range(2):
    with pytest.raises(UserError, match="the model is not trained"):
      loop.train(config, tmp_path / "run")


def test_a_damaged_checkpoint_does_not_outlive_those_after_it(trained, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(trained, workdir)
  directory = workdir / "checkpoints"
  victim = next((directory / "00000013").rglob("d/*"))
  victim.write_bytes(victim.read_bytes()[:-1])
  loop.train(small_config(), workdir)
  assert list_steps(directory)[-1] == 13
  verify(directory, 13)
  assert len(list(directory.glob("damaged-00000013-*"))) == 1


def test_a_run_of_damaged_checkpoints_is_not_begun_anew(trained, tmp_path):
  """Nothing is lost: the metrics stay, also at a second attempt."""
  workdir = tmp_path / "run"
  shutil.copytree(trained, workdir)
  steps = list_steps(workdir / "checkpoints")
  for step in steps:
    path = workdir / f"checkpoints/{step:08d}/metadata.json"
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
  metrics = (workdir / "metrics.jsonl").read_bytes()
  for _ in range(2):
    with pytest.raises(UserError, match="no whole checkpoint is left in"):
      loop.train(small_config(), workdir)
  assert len(list((workdir / "checkpoints").glob("damaged-*"))) == len(steps)
  assert (workdir / "metrics.jsonl").read_bytes() == metrics


def test_metrics_on_a_full_disk_are_warnings(tmp_path, capsys):
  """Of lines and of events, however many."""
  writer = MetricWriter(tmp_path, 0)
  _, limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  with _ignored(signal.SIGXFSZ):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit))
    for step in range(1, 100):
      writer.write("metrics", step, {"loss": 1.0, "accuracy": 0.5})
    writer.close()
    del writer
    gc.collect()  # a file that is still open would warn, which is an error here
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
  printed = capsys.readouterr().out
  assert printed.count("could not be written (File too large)") > 90
  assert (tmp_path / "metrics.jsonl").stat().st_size <= 100


def test_a_signal_breaks_off_an_evaluation(tmp_path, trained, monkeypatch):
  """The state is saved, and evaluated when the run is continued."""
  evaluate = loop.evaluate_params

  def interrupted(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(*args, **kwargs)

  workdir = tmp_path / "run"
  with monkeypatch.context() as patch:
    patch.setattr(loop, "evaluate_params", interrupted)
    assert loop.train(small_config(), workdir) is None
  assert list_steps(workdir / "checkpoints") == [4]
  assert [line["step"] for line in read_lines(workdir / "metrics.jsonl")] == [1, 2, 3, 4]
  assert loop.train(small_config(), workdir)["images"] == 90
  assert_same_run(workdir, trained)


@pytest.mark.parametrize(
  ("broken", "saved"),
  [pytest.param("evaluate_params", 4, marks=pytest.mark.slow), ("to_devices", 3)],
)
def test_what_was_learnt_before_an_error_in_the_data_is_saved(
  broken, saved, tmp_path, trained, monkeypatch, capsys
):
  def evaluate(*args, **kwargs):
    raise DataError("not a readable image")

  def to_devices(batches, mesh):
    yield from itertools.islice(loop_to_devices(batches, mesh), 3)
    raise DataError("not a readable image")

  loop_to_devices = loop.to_devices
  workdir = tmp_path / "run"
  with monkeypatch.context() as patch:
    patch.setattr(loop, broken, {"evaluate_params": evaluate, "to_devices": to_devices}[broken])
    with pytest.raises(UserError, match="not a readable image"):
      loop.train(small_config(), workdir)
  assert list_steps(workdir / "checkpoints") == [saved]
  assert f"Everything up to step {saved} is saved" in capsys.readouterr().out
  assert loop.train(small_config(), workdir)["images"] == 90
  assert_same_run(workdir, trained)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_in_a_thread_of_a_program(tmp_path, trained, workers):
  config = small_config()
  config.data.reading.workers = workers

  def train():
    with jax.numpy_dtype_promotion("standard"):  # which is of each thread
      return loop.train(config, tmp_path / "run")

  with ThreadPoolExecutor(1) as threads:
    assert threads.submit(train).result()["images"] == 90
  assert_same_run(tmp_path / "run", trained)


@pytest.mark.slow
def test_a_profile_survives_a_restart_in_its_middle(tmp_path):
  """The run ends within the steps to be recorded, and is started once more."""
  config = small_config(num_epochs=1.0)
  config.profile.update(first_step=4, last_step=20)
  for _ in range(2):
    loop.train(config, tmp_path / "run")
  assert list((tmp_path / "run" / "profile").rglob("perfetto_trace.json.gz"))


@pytest.mark.slow
def test_a_run_that_is_never_finite_does_not_roll_back_for_ever(tmp_path):
  config = small_config(on_nonfinite="rollback")
  config.optimizer.update(learning_rate=1e38, clip_norm=0.0, warmup_epochs=0.0)
  config.num_epochs = 3.0
  with pytest.raises(UserError, match="is not finite"):
    loop.train(config, tmp_path / "run")
