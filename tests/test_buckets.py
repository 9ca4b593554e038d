"""Directories in object stores: paths, checkpoints, the lock and a run's files, without a network.

The store is fsspec's in memory; tests/test_bucket_runs.py asks a server.
"""

import io
import json
import random
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from gfnet_jax import buckets, transfers
from gfnet_jax.buckets import BucketPath, UnavailableError, as_directory
from gfnet_jax.checkpoints import remote
from gfnet_jax.checkpoints.checksums import SUMS, DamagedError, write_checksums
from gfnet_jax.checkpoints.finding import find_checkpoint, list_steps, set_aside
from gfnet_jax.checkpoints.metadata import serialize_metadata
from gfnet_jax.checkpoints.reading import read_metadata, restore, verify
from gfnet_jax.checkpoints.store import Checkpoints
from gfnet_jax.data.sources.copies import copied
from gfnet_jax.data.sources.open import open_source
from gfnet_jax.errors import UserError
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.training import lock_file
from gfnet_jax.training.lock import Lock
from gfnet_jax.training.mirror import Mirror
from gfnet_jax.training.resume import newest_whole

WRITES = ("pipe_file", "put_file", "cp_file", "rm_file")  # what changes a store


@pytest.fixture
def home() -> BucketPath:
  return BucketPath(f"memory://{uuid.uuid4().hex}/run")


@pytest.fixture
def no_patience(monkeypatch):
  monkeypatch.setattr(transfers, "PATIENCE", 0.0)
  monkeypatch.setattr(transfers, "_gone", threading.Event())
  monkeypatch.setattr(transfers.time, "sleep", lambda seconds: None)


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


def checkpoint_of(directory: Path, step: int, content: str = "1") -> Path:
  """A local checkpoint of three files and their sums."""
  path = directory / f"{step:08d}"
  (path / "params").mkdir(parents=True)
  (path / "metadata.json").write_text(serialize_metadata({"step": step}))
  for name in ("a", "b"):
    (path / "params" / name).write_text(name + content)
  write_checksums(path)
  return path


def test_paths(home):
  assert str(BucketPath("gs://bucket//run/")) == "gs://bucket/run"
  assert (home / "a").name == "a" and (home / "a").parent == home
  assert BucketPath("gs://bucket").parent == BucketPath("gs://bucket")
  assert not home.exists() and home.iterdir() == [] and home.objects() == []
  (home / "a").write_bytes(b"1")
  (home / "d/e").create(b"2")
  with pytest.raises(FileExistsError):
    (home / "d/e").create(b"3")
  assert home.is_dir() and (home / "d").is_dir() and (home / "a").is_file()
  assert [path.name for path in home.iterdir()] == ["a", "d"]
  assert home.objects() == ["a", "d/e"]
  (home / "a").copy_to(home / "d/f")
  assert (home / "d/f").read_bytes() == b"1" and (home / "d/e").read_bytes() == b"2"
  (home / "a").unlink()
  (home / "a").unlink(missing_ok=True)
  for missing in ((home / "a").unlink, (home / "a").read_bytes):
    with pytest.raises(FileNotFoundError):
      missing()


def test_names_of_directories(monkeypatch):
  monkeypatch.setattr(buckets, "_check_bucket", lambda path: None)
  assert as_directory("runs/a") == Path("runs/a")
  assert as_directory("gs:odd") == Path("gs:odd")
  for name in ("gs://bucket/run", Path("gs://bucket/run"), BucketPath("gs://bucket/run")):
    assert as_directory(name) == BucketPath("gs://bucket/run")
  with pytest.raises(UserError, match="names no bucket; expected gs://BUCKET/DIRECTORY"):
    as_directory("gs://")


@pytest.mark.parametrize(
  ("name", "error", "message"),
  [
    ("gs://b/run", ImportError("gcsfs"), r"pip install gcsfs \(.* the extra 'gcs'\)"),
    ("s3://b/run", ImportError("s3fs"), r"pip install s3fs \(.* the extra 's3'\)"),
    ("nonsense://b/run", ValueError("unknown"), "no kind of store; expected gs:// or s3://"),
  ],
)
def test_a_missing_library_is_named(monkeypatch, name, error, message):
  def filesystem(*args, **kwargs):
    raise error

  monkeypatch.setattr("fsspec.filesystem", filesystem)
  buckets._file_system.cache_clear()
  with pytest.raises(UserError, match=message) as found:
    as_directory(name)
  assert "\n" not in str(found.value)
  buckets._file_system.cache_clear()


@pytest.mark.parametrize(
  ("raised", "expected"),
  [
    (FileNotFoundError("x"), "does not exist; create the bucket"),
    (OSError("Forbidden: gs://b\nno access"), "no permission: Forbidden: gs://b no access"),
    (PermissionError(13, "Access Denied"), "no permission: Access Denied"),
    (RuntimeError("line 1\nline 2 \x1b[2J"), r"does not answer \(line 1 line 2 \\x1b\[2J\)"),
    (TimeoutError(), "does not answer .no answer in time."),
  ],
)
def test_what_stores_refuse_is_one_line(monkeypatch, raised, expected):
  class FileSystem:
    async_impl, _strip_protocol = False, staticmethod(lambda url: url.partition("://")[2])

    def ls(self, *args, **kwargs):
      raise raised

  monkeypatch.setattr(buckets, "_file_system", lambda scheme: FileSystem())
  with pytest.raises(UserError, match=expected) as found:
    as_directory("gs://b/run")
  assert "\n" not in str(found.value)


def test_a_store_that_is_slow_is_one_line(home, monkeypatch, capsys):
  monkeypatch.setattr(buckets, "_last_warning", [-60.0])
  home.iterdir()
  assert capsys.readouterr().out == ""
  monkeypatch.setattr(buckets, "LATE", -1.0)
  home.iterdir()
  home.iterdir()
  assert capsys.readouterr().out == f"warning: {home} let a request wait for 0 s\n"


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


def test_a_short_absence_is_waited_for(home, away, monkeypatch, capsys):
  waited = []

  def sleep(seconds: float) -> None:
    waited.append(seconds)
    away[0] = len(waited) < 3

  monkeypatch.setattr(transfers.time, "sleep", sleep)
  done = []
  away[0] = True
  transfers.for_each(["a", "b"], lambda name: done.append(name) or (home / name).write_bytes(b""))
  assert waited == [1.0, 2.0, 4.0] and home.objects() == ["a", "b"]
  assert capsys.readouterr().out.count("cannot be reached (connection refused)") == 1

  monkeypatch.setattr(transfers, "PATIENCE", 0.0)  # in vain, then once, then patiently again
  monkeypatch.setattr(transfers, "_gone", threading.Event())
  for given_up in (False, True):
    assert transfers._gone.is_set() == given_up
    away[0] = True
    with pytest.raises(UnavailableError):
      transfers.for_each(["a"], lambda name: (home / name).write_bytes(b""))
  away[0] = False
  transfers.for_each(["a"], lambda name: (home / name).write_bytes(b""))
  assert not transfers._gone.is_set()


def test_files_of_a_run_appear_in_the_store(home, away, no_patience, capsys):
  (home / "metrics.jsonl").write_bytes(b"1\n")
  (home / "checkpoints/00000001/x").write_bytes(b"")
  with Mirror(home) as mirror:
    local = mirror.directory
    assert sorted(path.name for path in local.iterdir()) == ["metrics.jsonl"]
    with (local / "metrics.jsonl").open("a") as file:
      file.write("2\n")
    (local / "tensorboard").mkdir()
    (local / "tensorboard/events").write_bytes(b"e")
    (local / "config.json.tmp").write_bytes(b"half")
    mirror.flush()
    assert (home / "metrics.jsonl").read_bytes() == b"1\n2\n"
    assert (home / "tensorboard/events").read_bytes() == b"e"
    assert not (home / "config.json.tmp").exists()
    away[0] = True
    (local / "config.json").write_bytes(b"{}")
    with pytest.raises(UnavailableError):
      mirror.flush()
    away[0] = False
  assert (home / "config.json").read_bytes() == b"{}"
  assert not local.exists()
  with pytest.raises(UserError, match="the last metrics could not be written"), Mirror(home) as m:
    (m.directory / "metrics.jsonl").write_bytes(b"")
    away[0] = True


def test_a_large_file_is_not_sent_all_the_time(home, monkeypatch):
  mirror = Mirror(home)
  with mirror:
    (mirror.directory / "small").write_bytes(b"1")
    (mirror.directory / "large").write_bytes(bytes(1000))
    mirror.flush()
    monkeypatch.setattr("gfnet_jax.training.mirror.RATE", 10)
    (mirror.directory / "large").write_bytes(bytes(1001))
    assert mirror._changed(sparingly=True) == {}
    assert set(mirror._changed()) == {"large"}


def test_a_local_directory_is_its_own_mirror(tmp_path):
  with Mirror(tmp_path) as mirror:
    assert mirror.directory == tmp_path
    mirror.flush()
  assert list(tmp_path.iterdir()) == []


def test_one_run_in_a_directory(home):
  with Lock(home) as lock:
    assert json.loads((home / "lock.json").read_bytes())["run"] == lock.run
    with pytest.raises(UserError, match="is in use by another run"), Lock(home):
      pass
    lock.confirm()
  assert home.objects() == []


def test_a_lock_that_was_left_is_taken_over_once(home):
  path, dead = home / "lock.json", {"run": "dead", "pid": 1}
  path.write_bytes(json.dumps(dead).encode())
  assert lock_file.take_over(path, dead, '{"run": "a"}', "a") is None
  assert lock_file.take_over(path, dead, '{"run": "b"}', "b") == {"run": "a"}
  assert home.objects() == ["lock.json"]
  path.unlink()  # it ended properly meanwhile
  assert lock_file.take_over(path, {"run": "a"}, '{"run": "b"}', "b") is None
  assert json.loads(path.read_bytes()) == {"run": "b"}
  (home / "lock-over-b.json").write_bytes(b"")
  with pytest.raises(UserError, match=r"remove memory://.*lock-over-b\.json"):
    lock_file.take_over(path, {"run": "b"}, '{"run": "c"}', "c")


def test_an_answer_that_was_lost_is_no_other_run(home):
  assert lock_file.create(home / "lock.json", "mine")
  assert lock_file.create(home / "lock.json", "mine")
  assert not lock_file.create(home / "lock.json", "another's")


def test_a_network_that_fails_does_not_lose_the_lock(home, away):
  with Lock(home) as lock:
    away[0] = True
    for _ in range(5):
      lock.look()
    assert not lock.lost
    away[0] = False
    (home / "lock.json").unlink()
    for _ in range(3):
      lock.look()
    assert "was moved or removed" in lock.lost
    lock._lost = ""
    (home / "lock.json").write_bytes(json.dumps({"run": lock.run}).encode())


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache/gfnet_jax/data/memory"


def test_a_folder_in_a_store_is_read_from_a_copy(home, cache, capsys):
  for label in ("ant", "bee"):
    for i in range(2):
      png = io.BytesIO()
      Image.new("RGB", (8, 8), (i, 0, 0)).save(png, "PNG")
      (home / f"val/{label}/{i}.png").write_bytes(png.getvalue())
  data = ml_collections.ConfigDict({"source": "folder", "name": str(home)})
  source = open_source(data, "val")
  local = cache / str(home).removeprefix("memory://")
  assert len(source) == 4 and source.class_names == ["ant", "bee"]
  assert source[3].image == (home / "val/bee/1.png").read_bytes() and data.name == str(home)
  assert capsys.readouterr().out.startswith("Copying 4 files (0.00 GiB) of memory://")
  (home / "val/bee/2.png").write_bytes((home / "val/bee/1.png").read_bytes())
  (local / "val/bee/0.png").write_bytes(b"cut off")
  assert len(open_source(data, "val")) == 5
  assert capsys.readouterr().out.startswith("Copying 2 files ")
  (home / "val/bee/2.png").unlink()
  assert len(open_source(data, "val")) == 4
  assert "Copying" not in capsys.readouterr().out


def test_of_a_data_dir_one_data_set_is_copied(home, cache):
  for name in ("digits/1.0.0/a", "other/1.0.0/b"):
    (home / name).write_bytes(b"1")
  local = cache / str(home).removeprefix("memory://")
  assert copied("digits:1.0.0", str(home)) == ("digits:1.0.0", str(local))
  assert [path.name for path in local.iterdir()] == ["digits"]
  assert copied("digits", "") == ("digits", "")
  with pytest.raises(UserError, match="/none holds no data set"):
    copied("none", str(home))


def test_a_copy_that_a_disk_has_no_room_for_is_refused(home, cache, monkeypatch):
  (home / "digits/a").write_bytes(b"1")
  usage = shutil.disk_usage(cache.parents[3])
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**30))
  with pytest.raises(UserError, match=r"which has room for 0\.0; set XDG_CACHE_HOME"):
    copied(str(home / "digits"), "")


def test_no_object_leads_out_of_the_cache(home, cache):
  store = buckets._file_system("memory").store
  (home / "a").write_bytes(b"1")
  store[f"{home._path}/../../escape"] = store[(home / "a")._path]
  with pytest.raises(UserError, match="holds no data set"):
    copied(str(home), "")
