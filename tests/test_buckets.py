"""Directories in object stores: names, errors, and objects sent, without a network.

The store is fsspec's in memory; tests/test_bucket_runs.py asks a server.
"""

import threading
from pathlib import Path

import pytest

from gfnet_jax import buckets, transfers
from gfnet_jax.buckets import BucketPath, UnavailableError, as_directory
from gfnet_jax.errors import UserError


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
    (
      "gs://b/run",
      ImportError("gcsfs"),
      r"pip install gcsfs \(or gfnet_jax with its extra 'gcs'\)",
    ),
    ("s3://b/run", ImportError("s3fs"), r"pip install s3fs \(or gfnet_jax with its extra 's3'\)"),
    ("nonsense://b/run", ValueError("unknown"), "not a kind of store; expected gs:// or s3://"),
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
  assert capsys.readouterr().out == f"warning: a request to {home} took 0 s\n"


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
