"""A work directory in a store: the files of its run, and its lock."""

import json

import pytest

from gfnet_jax.buckets import UnavailableError
from gfnet_jax.errors import UserError
from gfnet_jax.training import lock_file
from gfnet_jax.training.lock import Lock
from gfnet_jax.training.mirror import Mirror


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
