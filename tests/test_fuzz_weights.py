"""Mutations of files of weights: refused in one line, or equal to what other readers read."""

import argparse
import random
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gfnet_jax.errors import UserError
from gfnet_jax.weights.files import read_state_dict

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

SECONDS = 45.0  # of every test
EXPENSIVE = 5.0  # seconds of CPU time for one file of some kilobytes
# PyTorch reads neither all names nor all instructions of pickles.
UNKNOWN = "Unsupported global: GLOBAL .* was not an allowed global|Unsupported operand [0-9]+"
WEIGHTS = {
  "blocks.0.norm1.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
  "blocks.0.filter.complex_weight": torch.linspace(-1, 1, 8).reshape(2, 4).T.half(),
  "head.bias": torch.ones(3, dtype=torch.float64),
}
VALUES = [0, 1, 2, 0x7F, 0x80, 0xFF]


def mutate(rng: random.Random, content: bytes) -> bytes:
  """One to four changes."""
  changed = bytearray(content)
  for _ in range(rng.choice([1, 1, 1, 2, 4])):
    i, j = sorted(rng.randrange(len(changed)) for _ in range(2))
    match rng.randrange(7):
      case 0:
        changed[i] ^= 1 << rng.randrange(8)
      case 1:
        changed[i] = rng.choice(VALUES)
      case 2:
        changed[i:j] = b""
      case 3:
        changed[i:i] = changed[i : min(j, i + 64)]
      case 4:
        changed[i : i + 4] = rng.choice(VALUES).to_bytes(1, "little") * 4
      case 5:
        length = min(j - i, 16)
        other = rng.randrange(len(changed))
        changed[i : i + length] = changed[other : other + length]
      case 6:
        changed = changed[:j] if rng.random() < 0.2 else changed
        changed[i:i] = rng.randbytes(rng.randrange(4))
    if not changed:
      return bytes(changed)
  return bytes(changed)


def fuzz(path: Path, content: bytes, read_by_others: Callable[[Path], dict], *, seed=0) -> int:
  """Tries mutations for a while; returns how many were accepted, all of them equal."""
  rng, accepted, tried = random.Random(seed), 0, 0
  until = time.monotonic() + SECONDS
  while time.monotonic() < until:
    tried += 1
    mutated = mutate(rng, content)
    if mutated == content:
      continue
    path.write_bytes(mutated)
    before = time.process_time()
    try:
      found = read_state_dict(path, allow_nan=True)
    except UserError as error:
      assert str(error).isprintable(), tried
      continue
    finally:
      assert time.process_time() - before < EXPENSIVE, tried
    try:
      others = read_by_others(path)
    except Exception as error:  # of any kind; what only we accept must be what was saved
      if re.search(UNKNOWN, str(error)):  # passed over by us: there is no second witness
        continue
      others = WEIGHTS
    accepted += 1
    assert len(found) == len(others), tried
    for array, other in zip(found.values(), others.values(), strict=True):
      expected = other.detach().float().contiguous().numpy()
      np.testing.assert_array_equal(array, expected, strict=True, err_msg=f"mutation {tried}")
  print(f"{tried} tried, {accepted} accepted")
  return accepted


def load(path: Path) -> dict:
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    content = torch.load(path, map_location="cpu", weights_only=True)
  return content.get("model", content)


def load_safetensors(path: Path) -> dict:
  # In the order of the data, as ours.
  with safetensors.safe_open(path, "pt") as file:
    return {key: file.get_tensor(key) for key in file.offset_keys()}


@pytest.fixture
def checkpoint():
  beside = dict(epoch=3, history=[0.5, 1e-3, None, True, "text", (1, b"2")])
  return dict(model=WEIGHTS, args=argparse.Namespace(lr=1e-3), optimizer=beside)


@pytest.mark.slow
def test_no_mutation_of_an_archive_is_accepted(tmp_path, checkpoint):
  path = tmp_path / "weights.pth"
  torch.save(checkpoint, path)
  assert fuzz(path, path.read_bytes(), load) == 0


@pytest.mark.slow
def test_mutated_pickles_in_sound_archives(tmp_path):
  path = tmp_path / "weights.pth"
  torch.save(dict(model=WEIGHTS), path)
  reader = torch._C.PyTorchFileReader(str(path))
  records = {name: reader.get_record(name) for name in reader.get_all_records()}

  class Rewritten(type(path)):
    """A path that writes bytes as the pickle of an archive whose sums are right."""

    def write_bytes(self, pickle):
      writer = torch._C.PyTorchFileWriter(str(self))
      for name, record in (records | {"data.pkl": pickle}).items():
        if not name.startswith((".", "version")):
          writer.write_record(name, record, len(record))
      writer.write_end_of_file()

  assert fuzz(Rewritten(path), records["data.pkl"], load, seed=1) > 0


@pytest.mark.slow
def test_mutated_files_of_the_older_format(tmp_path):
  path = tmp_path / "weights.pth"
  torch.save(dict(model=WEIGHTS), path, _use_new_zipfile_serialization=False)
  assert fuzz(path, path.read_bytes(), load, seed=2) > 0


@pytest.mark.slow
def test_mutated_safetensors(tmp_path):
  path = tmp_path / "weights.safetensors"
  safetensors.save_file({key: value.contiguous() for key, value in WEIGHTS.items()}, path)
  assert fuzz(path, path.read_bytes(), load_safetensors, seed=3) > 0
