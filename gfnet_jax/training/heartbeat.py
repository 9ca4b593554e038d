"""Signs of life: which process writes them into a shared directory, and whether it still runs."""

import getpass
import json
import os
import platform
import stat
from pathlib import Path
from typing import Any, NamedTuple

from gfnet_jax.buckets import BucketPath

BEAT = 1.0  # seconds between two of them
BUCKET_BEAT = 5.0  # in a store, which limits how often an object may be written, and asks a price
MAX_BYTES = 100_000  # of a file that is read; ours have a few hundred


class Process(NamedTuple):
  """A process, in words for people and in numbers that tell whether it still runs.

  Attributes:
    user: who started it.
    host: where.
    pid: its number.
    machine: this boot of the kernel, and what the number counts in; "" if not known.
    started: when, in clock ticks after the boot; "" if not known.
  """

  user: str
  host: str
  pid: int
  machine: str
  started: str

  def __str__(self) -> str:
    return f"process {self.pid} of {self.user} on {self.host}"


def this_process() -> Process:
  """The calling process."""
  try:
    user = getpass.getuser()
  except (KeyError, OSError):  # a container may have no name for it
    user = str(os.getuid())
  try:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    machine = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
  except OSError:  # no Linux
    machine = ""
  return Process(user, platform.node(), os.getpid(), machine, _start_time(os.getpid()))


def process_in(entry: dict[str, Any]) -> Process | None:
  """The process that a file describes; None if it does not."""
  values = [entry.get(name) for name in Process._fields]
  texts = [value for value in values if isinstance(value, str)]
  pid = entry.get("pid")
  if type(pid) is not int or not 0 < pid < 2**31 or len(texts) != len(values) - 1:
    return None
  return Process(*values)


def is_running(process: Process) -> bool | None:
  """Whether a process still runs; None if that cannot be told from this machine."""
  if not process.machine or process.machine != this_process().machine:
    return None
  try:
    os.kill(process.pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:  # another user's
    if not Path(f"/proc/{process.pid}").exists():  # hidden from us
      return None
  return _start_time(process.pid) == process.started  # its number may have been given again


def _start_time(pid: int) -> str:
  """See `Process.started`; "" for one that has ended and whose parent does not know yet."""
  try:
    text = Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return ""
  state, *fields = text.rpartition(")")[2].split()  # from the third on, see proc(5)
  return "" if state in "ZX" else fields[18]


def read_entry(path: Path | BucketPath) -> dict[str, Any]:
  """The JSON object in a small file; {} if there is none, whatever else is there."""
  try:
    if isinstance(path, Path):  # objects are read whole, and are no pipes
      status = path.stat()
      if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        return {}
    entry = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return {}
  return entry if isinstance(entry, dict) else {}


def read_heartbeat(path: Path | BucketPath) -> dict[str, Any]:
  """The heartbeat in a file: "beat" and "progress", integers, "finished" and more; {} if none."""
  entry = read_entry(path)
  kinds = {"beat": int, "progress": int, "finished": bool}
  whole = all(type(entry.get(name)) is kind for name, kind in kinds.items())
  return entry if whole else {}
