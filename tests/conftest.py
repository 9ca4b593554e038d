"""Strict settings for every test: eight simulated devices, no silent promotion."""

import os
import tempfile
from pathlib import Path

_data_dir = tempfile.TemporaryDirectory(prefix="tfds-")  # read by TFDS when it is imported
os.environ["TFDS_DATA_DIR"] = _data_dir.name
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(_data_dir.name) / "jax")
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import json
import subprocess
import sys
from collections.abc import Callable

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
  """The directory of TFDS data sets, of this test session alone."""
  return Path(_data_dir.name)


@pytest.fixture(scope="session")
def script() -> Callable[..., subprocess.CompletedProcess]:
  """script("train.py", *arguments, devices=1) runs a script of the project to its end."""

  def run(name: str, *arguments, devices: int = 1) -> subprocess.CompletedProcess:
    return subprocess.run(
      script_command(name, *arguments),
      cwd=ROOT,
      env=script_environment(devices),
      capture_output=True,
      text=True,
      timeout=300,
    )

  return run


def script_command(name: str, *arguments) -> list[str]:
  return [sys.executable, name, *map(str, arguments)]


def script_environment(devices: int = 1) -> dict[str, str]:
  return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


def read_lines(path: Path) -> list[dict]:
  """The lines of a .jsonl file."""
  return [json.loads(line) for line in path.read_text().splitlines()]
