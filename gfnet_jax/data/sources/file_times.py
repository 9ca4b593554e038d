"""Whether the times of a file or folder tell that it is unchanged.

They do where the system keeps them. Mounts of object stores (through FUSE) show for a folder
a constant, the epoch, the time at which they were mounted, or that of a marker which never
changes.
"""

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")  # of Linux; man 5 proc
EARLIEST = 978_307_200 * 10**9  # ns since the epoch, in 2001: times before it are placeholders


def state(status: os.stat_result) -> str:
  """A fingerprint of what changes with a file or folder: its times, size and inode."""
  times = status.st_mtime_ns, status.st_ctime_ns
  return hashlib.sha256(repr((*times, status.st_size, status.st_ino)).encode()).hexdigest()


def tells(status: os.stat_result, latest: int, silent: Collection[int] = ()) -> bool:
  """Whether one of the times would be another one if there had been a change.

  A change sets both, of which copying a folder restores only that of modification.

  Args:
    status: of a file or folder.
    latest: the latest time that may be believed, in ns since the epoch; what lies in the
      future may stay the same when there is a change.
    silent: devices whose times tell nothing.
  """
  times = status.st_mtime_ns, status.st_ctime_ns
  return status.st_dev not in silent and any(EARLIEST <= time <= latest for time in times)


def silent_devices() -> set[int]:
  """The devices of FUSE, whose folders may have any time."""
  try:
    mounts = [line.split() for line in MOUNTS.read_text(errors="replace").splitlines()]
  except OSError:  # no Linux
    return set()
  devices = set()
  for fields in mounts:
    if "-" in fields and fields[fields.index("-") + 1].startswith("fuse"):
      major, _, minor = fields[2].partition(":")
      devices.add(os.makedev(int(major), int(minor)))
  return devices
