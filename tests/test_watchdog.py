"""What the watch over processes takes for a stall, and what not."""

import errno
import json
import threading

import jax
import pytest
from helpers import HANGS

from gfnet_jax.training import watchdog as module
from gfnet_jax.training.lock import Lock
from gfnet_jax.training.watchdog import Watchdog, _Sighting


@pytest.fixture
def ended(monkeypatch) -> list[str]:
  """The reasons for which a watchdog ended the process, instead of its end."""
  reasons = []
  monkeypatch.setattr(module, "BEAT", 0.01)
  monkeypatch.setattr(Watchdog, "_end", lambda self, reason: reasons.append(reason))
  return reasons


@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_stays_full_ends_nothing(ended, tmp_path, monkeypatch, capsys, processes):
  """While the run makes progress for several times the timeout; the other cannot write, either."""
  monkeypatch.setattr(jax, "process_count", lambda: processes)
  watchdog, beats, seen = Watchdog(Lock(tmp_path), 0.1), [], threading.Event()

  def full(path, text):
    watchdog.advance()
    beats.append(text)
    if len(beats) == 50:
      seen.set()
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(module, "write_atomically", full)
  with watchdog:
    assert seen.wait(HANGS)
  assert not ended
  assert capsys.readouterr().err.count("heartbeats not written (No space left on device)") == 1


@pytest.mark.parametrize("content", ["", '{"beat": 7, "prog', "\0\0"])
def test_a_heartbeat_that_cannot_be_read_says_nothing(tmp_path, content):
  (tmp_path / "heartbeats").mkdir()
  (tmp_path / "heartbeats/process-1.json").write_text(content)
  heartbeat = Watchdog(Lock(tmp_path), 10)._read(1)
  assert heartbeat == {}
  sighting = _Sighting({}, now=0.0)
  sighting.update(heartbeat, now=1.0)
  assert (sighting.beat, sighting.beat_time, sighting.finished) == (None, 0.0, False)


def test_a_run_without_progress_is_ended(ended, tmp_path, monkeypatch):
  watchdog, over = Watchdog(Lock(tmp_path), 0.1), threading.Event()
  monkeypatch.setattr(
    Watchdog, "_end", lambda self, reason: (ended.append(reason), self._stopped.set(), over.set())
  )
  watchdog.advance()
  with watchdog:
    assert over.wait(HANGS)
    watchdog._thread.join()  # which ends with the process otherwise
  assert ended == ["process 0 made no progress for 0 s"]
  assert json.loads((tmp_path / "heartbeats/process-0.json").read_text())["finished"] is False


def test_what_an_earlier_run_left_is_not_believed():
  before = {"beat": 1, "progress": 7, "finished": True}
  sighting = _Sighting(before, now=0.0)
  sighting.update(before, now=1.0)
  assert (sighting.beat_time, sighting.finished, sighting.progress) == (0.0, False, 0)
  sighting.update({"beat": 2, "progress": 0, "finished": False}, now=2.0)
  assert (sighting.beat_time, sighting.progress_time) == (2.0, 0.0)
  sighting.update({"beat": 3, "progress": 1, "finished": True}, now=3.0)
  assert (sighting.finished, sighting.progress_time) == (True, 3.0)


def test_an_error_of_this_process_alone_is_not_blamed_on_others(
  ended, tmp_path, monkeypatch, capsys
):
  """Nobody is waited for; of another error the reason would be said first."""
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
  with pytest.raises(type(error)), Watchdog(Lock(tmp_path), 1.0):
    raise error
  assert "RESOURCE_EXHAUSTED" not in capsys.readouterr().err
