"""The training step against the memory of the devices, by limits that are made up."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, finish, free_port, read_lines, script_environment
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from configs.digits import get_config
from gfnet_jax.config_files import read_config
from gfnet_jax.data.on_device.mixing import Mixing
from gfnet_jax.errors import UserError
from gfnet_jax.sharding import check_batch_size, make_mesh, split_batch
from gfnet_jax.training import loop, memory, program
from gfnet_jax.training.config_rules import check_groups
from gfnet_jax.training.initialize import initial_params
from gfnet_jax.training.memory import Plan, advise, explain_shortage, read_plan

COMPILED = "/jax/core/compile/backend_compile_duration"
IMAGENET = "configs/imagenet.py:gfnet-h-b"


@pytest.fixture(autouse=True)
def _standard_promotion():
  with jax.numpy_dtype_promotion("standard"):  # optax multiplies integers and floats
    yield


@pytest.fixture
def compilations():
  """A list that grows with the name of every program that is compiled."""
  events = []

  def listen(event, _, fun_name="", **__):
    if event == COMPILED:
      events.append(fun_name)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield events
  jax.monitoring.unregister_event_duration_listener(listen)


def small_config():
  config = get_config()
  config.num_epochs, config.eval_every_epochs, config.log_every_steps = 0.5, 0.5, 1
  config.optimizer.warmup_epochs = 0.1
  config.data.update(train_split="train[:25%]", batch_size=80)
  config.data.update(eval_split="test[:25%]", eval_batch_size=80)
  config.model.update(embed_dim=16, depth=1)
  return config


def test_a_plan_counts_what_is_donated_once():
  """A state of 4 kB that is donated, 400 bytes beside it, and a sum of both in between."""
  step = jax.jit(lambda state, x: state + x.sum(), donate_argnums=0)
  state, x = jnp.zeros(1000), jnp.zeros(100)
  assert read_plan(step.lower(state, x).compile()).resident == 4400
  kept = jax.jit(lambda state, x: state + x.sum())
  assert read_plan(kept.lower(state, x).compile()).resident == 8400
  assert read_plan(SimpleNamespace(memory_analysis=lambda: None)) is None


@pytest.mark.parametrize(
  ("statistics", "limit"),
  [
    ([None, None], None),
    ([{}, {}], None),
    ([{"bytes_limit": 16}, None], None),
    ([{"bytes_limit": 16, "bytes_in_use": 3}, {"bytes_limit": 15}], 15),
  ],
)
def test_the_limit_is_that_of_the_smallest_device(monkeypatch, statistics, limit):
  devices = [SimpleNamespace(memory_stats=lambda found=found: found) for found in statistics]
  monkeypatch.setattr(jax, "local_devices", lambda: devices)
  assert memory.memory_limit() == limit


def test_on_a_cpu_no_limit_is_known():
  assert memory.memory_limit() is None


class Step:
  """A run whose training step is one that a test gives, and its arguments."""

  def __init__(self, function=lambda state, x: state + x.sum()):
    self.step, self.arguments = jax.jit(function, donate_argnums=0), (jnp.zeros(1000), jnp.ones(8))
    mesh = SimpleNamespace(size=8)
    self.run = SimpleNamespace(
      config=read_config(IMAGENET, []), mesh=mesh, program=SimpleNamespace(train=self.step)
    )

  def check(self):
    memory.check_memory(self.run, self.arguments)


def test_what_is_checked_is_compiled_once(monkeypatch, compilations):
  monkeypatch.setattr(memory, "memory_limit", lambda: 10**9)
  step = Step()
  del compilations[:]
  step.check()
  assert len(compilations) == 1
  state = step.step(*step.arguments)
  step.step(state, step.arguments[1])
  assert len(compilations) == 1


def test_without_a_limit_nothing_is_compiled_ahead(compilations):
  step = Step()
  del compilations[:]
  step.check()
  assert not compilations


def test_what_fits_just_so_is_let_through(monkeypatch):
  monkeypatch.setattr(memory, "read_plan", lambda _: Plan(4 * 10**9, 12 * 10**9))
  monkeypatch.setattr(memory, "memory_limit", lambda: 16 * 10**9)
  Step().check()
  monkeypatch.setattr(memory, "read_plan", lambda _: None)
  monkeypatch.setattr(memory, "memory_limit", lambda: 1)
  Step().check()


def test_what_is_too_large_is_one_line_with_advice(monkeypatch):
  """4 GB stay, 30 must go into the 12 that are left: at least three parts, so four."""
  monkeypatch.setattr(memory, "read_plan", lambda _: Plan(4 * 10**9, 30 * 10**9))
  monkeypatch.setattr(memory, "memory_limit", lambda: 16 * 10**9)
  with pytest.raises(UserError) as refusal:
    Step().check()
  assert str(refusal.value) == (
    "a training step needs 34 GB on every device, of which jax may use 16 GB (cpu); try "
    "--config.model.remat=True, --config.optimizer.accumulate_steps=4 or "
    "--config.data.batch_size=256 --config.mixing.group_size=32"
  )


def test_the_compilers_own_refusal_is_one_line_with_advice(monkeypatch):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory.\nUsed 21.4G of 16G")

  monkeypatch.setattr(memory, "memory_limit", lambda: 16 * 10**9)
  step = Step()
  step.run.program.train = SimpleNamespace(lower=refuse)
  with pytest.raises(UserError) as refusal:
    step.check()
  assert str(refusal.value).startswith(
    r"the memory of the devices (cpu) is too small (RESOURCE_EXHAUSTED: Ran out of memory.\nUsed "
    "21.4G of 16G); try --config.model.remat=True, "
  )


def test_a_real_shortage_is_one_line():
  refused = pytest.raises(UserError, match=r"too small \(RESOURCE_EXHAUSTED: .*; try this or that")
  with refused, explain_shortage(lambda: ["this", "that"]):
    jnp.zeros(1 << 50, jnp.int8).block_until_ready()  # a pebibyte


def test_other_errors_pass():
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), explain_shortage(list):
    raise jax.errors.JaxRuntimeError("INTERNAL: of another kind")


def overridden(flags):
  return read_config(IMAGENET, flags)


@pytest.mark.parametrize(
  ("flags", "excess", "advice"),
  [
    ([], 1.1, ["model.remat=True", "optimizer.accumulate_steps=2", "data.batch_size=512 --"]),
    (["model.remat=True"], 1.1, ["optimizer.accumulate_steps=2", "data.batch_size=512 --"]),
    (
      ["model.remat=True", "optimizer.accumulate_steps=2", "mixing.group_size=64"],
      1.1,
      ["optimizer.accumulate_steps=4", "data.batch_size=512"],
    ),
    ([], math.inf, ["sharding=fsdp", "model.remat=True"]),
    (["sharding=fsdp"], math.inf, ["model.remat=True"]),
    (["model.remat=True", "data.batch_size=8", "mixing.group_size=8"], 2, []),
  ],
)
def test_advice_is_what_the_config_has_not_yet(flags, excess, advice):
  found = advise(overridden([f"--config.{flag}" for flag in flags]), 8, excess)
  assert len(found) == len(advice)
  for flag, start in zip(found, advice, strict=True):
    assert flag == f"--config.{start}" or (start.endswith("--") and flag.startswith("--config."))


def test_one_device_is_not_told_to_share():
  assert advise(overridden([]), 1, math.inf) == ["--config.model.remat=True"]


@pytest.fixture(scope="module")
def imagenet():
  return overridden([])


@settings(deadline=None, max_examples=50)
@given(
  rows=st.integers(1, 48),
  devices=st.integers(1, 8),
  parts=st.integers(1, 4),
  group=st.integers(1, 48),
  excess=st.floats(1.01, 64),
)
def test_every_advice_can_be_followed(imagenet, rows, devices, parts, group, excess):
  """Whatever the config, what is advised is allowed and splits the work finely enough."""
  config = imagenet.copy_and_resolve_references()
  config.data.batch_size = rows * parts * devices
  config.optimizer.accumulate_steps = parts
  config.mixing.group_size = math.gcd(group, rows * parts)
  assume(config.mixing.group_size % 2 == 0)
  for flag in advise(config, devices, excess):
    changed = config.copy_and_resolve_references()
    for part in flag.split():
      name, _, value = part.removeprefix("--config.").partition("=")
      changed.update_from_flattened_dict({name: json.loads(value.lower())})
    mesh = SimpleNamespace(size=devices)
    check_batch_size(changed.data.batch_size, changed.optimizer.accumulate_steps, mesh)
    check_groups(changed, mesh)
    Mixing(num_classes=10, **changed.mixing)
    assert changed.data.batch_size // devices % changed.mixing.group_size == 0
    at_once = changed.data.batch_size / changed.optimizer.accumulate_steps
    assert changed.model.remat or at_once <= rows * devices / excess * (1 + 1e-9)


def test_a_run_that_does_not_fit_ends_before_its_first_step(data_dir, monkeypatch, tmp_path):
  monkeypatch.setattr(memory, "memory_limit", lambda: 10**4)
  with pytest.raises(UserError, match=r"training step needs 0\.\d+ GB .* may use 1e-05 GB \(cpu\)"):
    loop.train(small_config(), tmp_path / "run")
  assert not read_lines(tmp_path / "run/metrics.jsonl")


def test_a_shortage_in_the_first_step_is_one_line(data_dir, monkeypatch, tmp_path):
  def make_train_step(*_):
    return lambda *_: jnp.zeros(1 << 50, jnp.int8)

  monkeypatch.setattr(program, "make_train_step", make_train_step)
  with pytest.raises(UserError, match=r"RESOURCE_EXHAUSTED.*try --config.model.remat=True"):
    loop.train(small_config(), tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_fits_is_the_same_run(data_dir, monkeypatch, tmp_path, compilations):
  """Bit for bit, and its step is not compiled twice for having been checked."""
  metrics = []
  for limit in (None, 10**9):
    monkeypatch.setattr(memory, "memory_limit", lambda limit=limit: limit)
    del compilations[:]
    loop.train(small_config(), tmp_path / str(limit))
    metrics.append((tmp_path / str(limit) / "metrics.jsonl").read_bytes())
    assert compilations.count("jit(train_step)") == 1
  assert metrics[0] == metrics[1]


@pytest.mark.slow
@pytest.mark.parametrize("short", [0, 1])
def test_if_one_process_has_too_little_all_end_alike(tmp_path, data_dir, short):
  code = """if True:
    import runpy, sys
    from gfnet_jax.training import memory
    limit = int(sys.argv.pop(1))
    memory.memory_limit = lambda: limit
    runpy.run_path("train.py", run_name="__main__")
    """
  port, flags = free_port(), ("--config.num_epochs=3", "--config.optimizer.warmup_epochs=1")
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, "-c", code, "10000" if process == short else "1000000000"),
        *("--workdir", tmp_path / "run", *flags),
        *("--coordinator", f"127.0.0.1:{port}", "--num-processes=2", f"--process-id={process}"),
      ],
      cwd=ROOT,
      env=script_environment(2),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for process in range(2)
  ]
  try:
    results = finish(processes)
  finally:
    for process in processes:
      process.kill()
  assert [code for code, *_ in results] == [2, 2], results
  for process, (_, _, errors) in enumerate(results):
    named = "" if process == short else f"process {short}: "
    assert f"error: {named}a training step needs 0." in errors
    assert errors.count("error: ") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_for_users")
def test_what_is_advised_does_need_less():
  """By XLA's own plan for a small network on eight devices."""

  def plan(**changes):
    config = get_config()
    config.data.batch_size, config.mixing.group_size = 512, 8
    config.model.update(embed_dim=32, depth=6, scan=True)  # XLA:CPU undoes remat elsewhere
    config.update_from_flattened_dict(changes)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
      built = program.build_program(config, mesh)
      state = built.init(initial_params(built.make_model, "", mesh))
      batch = jax.device_put(random_batch(config), split_batch(mesh))
      return read_plan(built.train.lower(state, {}, batch, 0.1).compile())

  before = plan()
  for field, value in (
    ("model.remat", True),
    ("optimizer.accumulate_steps", 2),
    ("data.batch_size", 256),
  ):
    assert plan(**{field: value}).temporary < 0.8 * before.temporary, field
  assert plan(sharding="fsdp").resident < 0.5 * before.resident


def random_batch(config):
  size = config.data.batch_size
  side = config.model.image_size
  return {
    "image": np.zeros((size, side, side, 3), np.uint8),
    "label": np.zeros(size, np.int32),
    "bad": np.zeros(size, bool),
  }
