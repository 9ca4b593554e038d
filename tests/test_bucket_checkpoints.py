"""Checkpoints in a store: whole or not there, whenever they are cut off, and verified."""

import random
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from gfnet_jax import buckets, transfers
from gfnet_jax.buckets import BucketPath
from gfnet_jax.checkpoints import remote
from gfnet_jax.checkpoints.checksums import SUMS, DamagedError, write_checksums
from gfnet_jax.checkpoints.finding import find_checkpoint, list_steps, set_aside
from gfnet_jax.checkpoints.metadata import serialize_metadata
from gfnet_jax.checkpoints.reading import read_metadata, restore, verify
from gfnet_jax.checkpoints.store import Checkpoints
from gfnet_jax.errors import UserError
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.training.resume import newest_whole

WRITES = ("pipe_file", "put_file", "cp_file", "rm_file")  # what changes a store


class Cut(BaseException):
  """The process is killed."""


@pytest.fixture
def cut_after(monkeypatch) -> Callable[[int], None]:
  """A function: of the following changes of a store only so many happen."""
  call, left = BucketPath._call, [10**9]

  def counted(self, method, *args, **kwargs):
    if method in WRITES:
      left[0] -= 1
      if left[0] < 0:
        raise Cut
    return call(self, method, *args, **kwargs)

  monkeypatch.setattr(BucketPath, "_call", counted)
  monkeypatch.setattr(transfers, "AT_ONCE", 1)
  return lambda changes: left.__setitem__(0, changes)


def checkpoint_of(directory: Path, step: int, content: str = "1") -> Path:
  """A local checkpoint of three files and their sums."""
  path = directory / f"{step:08d}"
  (path / "params").mkdir(parents=True)
  (path / "metadata.json").write_text(serialize_metadata({"step": step}))
  for name in ("a", "b"):
    (path / "params" / name).write_text(name + content)
  write_checksums(path)
  return path


def test_checkpoints_are_as_on_a_disk(home, tmp_path, capsys):
  values = np.arange(6, dtype=np.float32).reshape(2, 3)
  with Checkpoints(home / "checkpoints", keep_last=2) as checkpoints:
    for step, top1 in ((1, 0.5), (2, 0.9), (3, 0.1), (4, 0.2)):
      metadata = {"metrics": {"top1": top1}}
      checkpoints.save(step, {"params": {"x": jnp.asarray(values + step)}}, metadata)
  directory = home / "checkpoints"
  assert list_steps(directory) == [2, 3, 4]  # the best, and two
  assert find_checkpoint(home) == (directory, 4)
  assert find_checkpoint(home, "best") == (directory, 2)
  assert find_checkpoint(directory / "00000003") == (directory, 3)
  with remote.on_disk(directory, 4) as local:
    found = restore(local, 4, {"params": {"x": jnp.zeros((2, 3))}})
  np.testing.assert_array_equal(found["params"]["x"], values + 4)
  assert not local.exists()
  set_aside(directory, 4)
  assert list_steps(directory) == [2, 3]
  [aside] = [path for path in directory.iterdir() if path.name.startswith("damaged-")]
  assert SUMS in aside.objects() and (directory / "00000004").objects() == []
  assert "warning" not in capsys.readouterr().out


def test_a_kill_at_any_moment_leaves_whole_checkpoints(home, tmp_path, cut_after):
  """While a checkpoint is uploaded, takes the place of another, is set aside or removed."""
  first, second = checkpoint_of(tmp_path / "a", 7, "1"), checkpoint_of(tmp_path / "b", 7, "2")
  sums = [(path / SUMS).read_bytes() for path in (first, second)]
  target = home / first.name
  files = 3

  def cut(changes: int, action: Callable[[], None]) -> bool:
    cut_after(changes)
    try:
      action()
    except Cut:
      return True
    finally:
      cut_after(10**9)
    return False

  changes = 0
  while cut(changes, lambda: remote.complete(first, target)):
    assert list_steps(home) == []
    remote.clear_up(home)
    assert home.objects() == []
    changes += 1
  assert changes == files + 1
  verify(home, 7)

  changes = 0
  while cut(changes, lambda: remote.complete(second, target)):
    remote.clear_up(home)
    verify(home, 7)
    assert (target / SUMS).read_bytes() in sums
    remote.complete(first, target)
    changes += 1
  assert changes > 3 * files and (target / SUMS).read_bytes() == sums[1]
  assert all(name.startswith("00000007/") for name in home.objects())

  changes = 0
  while cut(changes, lambda: remote.remove(target)):
    steps = list_steps(home)  # still whole, or none
    if steps:
      verify(home, 7)
    remote.clear_up(home)
    remote.complete(second, target)
    changes += 1
  assert changes == files + 1 and home.objects() == []


def test_a_damaged_checkpoint_is_passed_over(home, tmp_path, capsys):
  for step in (7, 8):
    remote.complete(checkpoint_of(tmp_path, step), home / f"{step:08d}")
  path = home / "00000008"
  name = "params/b"
  content = bytearray((path / name).read_bytes())
  content[len(content) // 2] ^= 1
  (path / name).write_bytes(bytes(content))
  with pytest.raises(DamagedError, match=f"checkpoint {path} is damaged: {name} was altered"):
    verify(home, 8)
  assert newest_whole(home) == 7
  assert f"{path} is damaged: {name} was altered; set aside" in capsys.readouterr().out


@pytest.mark.slow
def test_every_flipped_bit_and_truncation_is_detected(home, capsys):
  """As in test_faults, of objects: 200 flips and 50 truncations."""
  tree = {"params": {"x": jnp.arange(100.0)}, "training": {"y": jnp.arange(50.0)}}
  with Checkpoints(home) as checkpoints:
    for step in (7, 8):
      checkpoints.save(step, tree, {})
  path = home / "00000008"
  contents = {name: (path / name).read_bytes() for name in path.objects()}
  names = [name for name, content in contents.items() if content]
  rng = random.Random(0)
  for i in range(250):
    sizes = [len(contents[name]) for name in names]
    name = names[i % len(names)] if i % 2 else rng.choices(names, sizes)[0]
    damaged = bytearray(contents[name])
    if i < 200:
      damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    else:
      del damaged[rng.randrange(len(damaged)) :]
    (path / name).write_bytes(bytes(damaged))
    assert newest_whole(home) == 7
    assert f"{path} is damaged: " in capsys.readouterr().out
    for name, content in contents.items():
      (path / name).write_bytes(content)
  verify(home, 8)


def test_a_file_of_weights_in_a_store_is_one_line(home):
  (home / "gfnet.pth").write_bytes(b"1")
  with pytest.raises(UserError, match="copy it to a disk"):
    load_model(str(home / "gfnet.pth"))


def test_no_object_leads_out_of_the_copy(home, tmp_path):
  remote.complete(checkpoint_of(tmp_path, 7), home / "00000007")
  store = buckets._file_system("memory").store
  prefix = (home / "00000007")._path
  for name in ("../../escape", "params/../../../escape"):
    store[f"{prefix}/{name}"] = next(iter(store.values()))
    with pytest.raises(DamagedError, match="does not belong to it"):
      verify(home, 7)
    del store[f"{prefix}/{name}"]
  verify(home, 7)
  assert read_metadata(home, 7)["step"] == 7


def test_a_store_that_is_away_costs_only_a_checkpoint(home, away, no_patience, capsys):
  tree = {"params": {"x": jnp.zeros(3)}}
  with Checkpoints(home) as checkpoints:
    away[0] = True
    checkpoints.save(1, tree, {})
    checkpoints.wait()
    away[0] = False
    checkpoints.save(2, tree, {})
  said = capsys.readouterr().out
  assert "the checkpoint of step 1 could not be written to memory://" in said
  assert "(connection refused); the next one will be tried" in said
  assert list_steps(home) == [2]
  checkpoints = Checkpoints(home)
  away[0] = True
  checkpoints.save(3, tree, {})
  with pytest.raises(UserError, match="step 3 could not be written"):
    checkpoints.close()
  away[0] = False
  assert list_steps(home) == [2]
