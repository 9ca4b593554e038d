"""When freed memory is kept; platforms that are not there."""

import ctypes
import os
import subprocess
import sys

import jax
import pytest
from helpers import HANGS, ROOT

from gfnet_jax import startup
from gfnet_jax.errors import UserError


@pytest.fixture
def settings(monkeypatch) -> dict[int, int]:
  """What mallopt was told."""
  told = {}

  class Library:
    @staticmethod
    def mallopt(parameter: int, value: int) -> int:
      told[parameter] = value
      return 1

  monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
  return told


def test_on_a_cpu_it_is_kept(settings, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  startup.keep_freed_memory()
  assert settings == {-4: 0, -1: -1, -8: 1}


@pytest.mark.parametrize("platforms", ["cuda", "tpu,cpu"])
def test_beside_an_accelerator_it_is_not(settings, monkeypatch, platforms):
  monkeypatch.setenv("JAX_PLATFORMS", platforms)
  startup.keep_freed_memory()
  assert not settings


def test_other_c_libraries_are_left_alone(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
  startup.keep_freed_memory()


@pytest.mark.parametrize(
  ("error", "reason"),
  [
    (RuntimeError("Unable to initialize backend 'tpu': no library (set JAX_PLATFORMS=...)"), "tpu"),
    (RuntimeError("two\nlines"), r"two\\nlines"),
    (AssertionError(), "no such devices"),
  ],
)
def test_no_devices_are_one_line(monkeypatch, error, reason):
  def devices():
    raise error

  monkeypatch.setattr(jax, "devices", devices)
  monkeypatch.setenv("JAX_PLATFORMS", "tpu,cuda")
  with pytest.raises(
    UserError, match=f"JAX_PLATFORMS is 'tpu,cuda', .*{reason}.*; unset it"
  ) as found:
    startup.check_devices()
  assert "set JAX_PLATFORMS=" not in str(found.value)


def test_devices_that_are_there():
  startup.check_devices()


@pytest.mark.slow
@pytest.mark.parametrize("platforms", ["nonsense", "cuda", "cpu,nonsense", "tpu,metal", "CPU2"])
@pytest.mark.parametrize(
  "arguments",
  [
    ("train.py", "--workdir", "nowhere"),
    ("eval.py", "--checkpoint", "nowhere"),
    ("tools/predict.py", "nowhere", "README.md"),
    ("convert_torch_weights.py", "nowhere.pth", "nowhere"),
  ],
)
def test_a_missing_platform_ends_every_script_in_one_line(arguments, platforms):
  result = subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": platforms},
    capture_output=True,
    text=True,
    timeout=HANGS,
  )
  assert result.returncode == 2
  assert result.stderr.startswith(f"error: JAX_PLATFORMS is {platforms!r}, and jax finds nothing")
  assert result.stderr.count("\n") == 1
