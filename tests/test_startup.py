"""When freed memory is kept."""

import ctypes

import pytest

from gfnet_jax import startup


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
