"""Strict settings for every test: eight simulated devices, no silent promotion."""

import os
import tempfile
from pathlib import Path

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers share what is prepared and compiled
  _directory = tempfile.TemporaryDirectory(prefix="gfnet-jax-")
  os.environ["TFDS_DATA_DIR"] = str(Path(_directory.name) / "tfds")  # read when TFDS is imported
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(_directory.name) / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import contextlib
import functools
import runpy
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence

import hypothesis
import jax
import jax._src.compiler
import pytest
from fork_server import Script, Server
from helpers import CAN_DO_WITHOUT, FUSION_EMITTERS, HANGS, ROOT, free_port, script_environment
from photo_sets import write_photos

from gfnet_jax import startup, transfers
from gfnet_jax.buckets import BucketPath, UnavailableError
from gfnet_jax.command_line import run

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background job has it
  signal.signal(signal.SIGINT, signal.default_int_handler)  # for the scripts that tests interrupt

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("busy machine", deadline=None)
hypothesis.settings.load_profile("busy machine")
# Most of the time goes into compiling.
jax.config.update("jax_disable_most_optimizations", True)


def _compile_quickly(get_compile_options: Callable) -> Callable:
  """Adds what halves the time of compiling a training step, and jax has no setting for.

  In XLA_FLAGS it would hold for `compiled_as_for_users`, too.
  """

  @functools.wraps(get_compile_options)
  def get_quick_options(*args, **kwargs):
    options = get_compile_options(*args, **kwargs)
    if jax.config.read("jax_disable_most_optimizations"):
      options.env_option_overrides = [*options.env_option_overrides, (FUSION_EMITTERS, False)]
    return options

  return get_quick_options


if CAN_DO_WITHOUT:
  jax._src.compiler.get_compile_options = _compile_quickly(jax._src.compiler.get_compile_options)


def pytest_configure(config: pytest.Config) -> None:
  """Lets the scripts compile as for users only in the slow tests."""
  if "not slow" in config.getoption("markexpr"):
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  for item in items:
    if "scripts" in getattr(item, "fixturenames", ()):
      item.add_marker("processes")


@pytest.fixture
def compiled_as_for_users() -> Iterator[None]:
  """For tests of what the compiler makes of the code."""
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def measured(request):
  """Records a difference under a description and checks it against its bound."""

  def measured(what, difference, at_most):
    request.node.user_properties.append((what, (float(difference), at_most)))
    assert difference <= at_most, what

  return measured


@pytest.fixture(scope="session")
def data_dir() -> Path:
  """The directory of TFDS data sets, of this test session alone."""
  return Path(os.environ["TFDS_DATA_DIR"])


@pytest.fixture(scope="session")
def scripts() -> Iterator[Server]:
  """scripts.start(name, *arguments, ...) starts a script of the project as a process."""
  with Server() as server:
    yield server


@pytest.fixture(scope="session")
def script(scripts) -> Callable[..., subprocess.CompletedProcess]:
  """script("train.py", *arguments, devices=1) runs a script of the project to its end."""

  def run(name: str, *arguments, devices: int = 1) -> subprocess.CompletedProcess:
    with scripts.start(name, *arguments, env=script_environment(devices)) as process:
      outputs = process.communicate(timeout=HANGS)
      return subprocess.CompletedProcess([name, *arguments], process.returncode, *outputs)

  return run


@pytest.fixture
def in_process(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
  """in_process("train.py", *arguments) runs a script here, much faster than as a process.

  Returns:
    (exit code, standard output, standard error).
  """

  def run_script(name: str, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(startup, "start", lambda: None)
    monkeypatch.chdir(ROOT)
    capsys.readouterr()
    code = run(runpy.run_path(str(ROOT / name))["main"])
    return code, *capsys.readouterr()

  return run_script


@pytest.fixture
def start(scripts) -> Iterator[Callable[..., list[Script]]]:
  """start("train.py", *arguments, processes, devices) starts all processes of a run.

  `devices` is of each of them, and `last` holds arguments of the last one alone.
  """
  with contextlib.ExitStack() as stack:

    def start(
      name: str, *arguments, processes: int, devices: int | Sequence[int] = 1, last: tuple = ()
    ) -> list[Script]:
      devices = [devices] * processes if isinstance(devices, int) else devices
      flags = ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", processes)
      started = []
      for i in range(processes):
        own = (*flags, "--process-id", i) if processes > 1 else ()
        own = (*own, *last) if i == processes - 1 else own
        process = scripts.start(name, *arguments, *own, env=script_environment(devices[i]))
        stack.enter_context(process)
        stack.callback(process.kill)  # before the context waits for its end
        started.append(process)
      return started

    yield start


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
  """The directory of this test in place of ~/.cache."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path, own_cache) -> Path:
  """30 images, ten of each of three classes."""
  return write_photos(tmp_path / "photos", 30, size=(24, 20))


@pytest.fixture
def home() -> BucketPath:
  """An empty directory in fsspec's store in memory."""
  return BucketPath(f"memory://{uuid.uuid4().hex}/run")


@pytest.fixture
def no_patience(monkeypatch) -> None:
  """A store that is away is not waited for."""
  monkeypatch.setattr(transfers, "PATIENCE", 0.0)
  monkeypatch.setattr(transfers, "_gone", threading.Event())
  monkeypatch.setattr(transfers.time, "sleep", lambda seconds: None)


@pytest.fixture
def away(monkeypatch) -> list[bool]:
  """[True] while the store does not answer."""
  call, state = BucketPath._call, [False]

  def perhaps(self, *args, **kwargs):
    if state[0]:
      raise UnavailableError(5, "connection refused", str(self))
    return call(self, *args, **kwargs)

  monkeypatch.setattr(BucketPath, "_call", perhaps)
  return state
