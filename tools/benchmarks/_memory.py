"""How much memory a call needs, as measured: by an accelerator's allocator, else of the host."""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import jax

STATUS, PEAKS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets VmHWM to VmRSS


def added_peak(call: Callable[[], object]) -> int | None:
  """Bytes that a call adds to those in use at its peak, its result included.

  On an accelerator they are only known if the peak is a new one of the device. On the host they
  are those of the whole process, in pages.

  Args:
    call: compiled, as compiling takes memory, too. Not called where nothing is known.

  Returns:
    The bytes, or None if the platform does not tell them.
  """
  device = jax.devices()[0]
  if before := device.memory_stats():
    jax.block_until_ready(call())
    peak = device.memory_stats()["peak_bytes_in_use"]
    return peak - before["bytes_in_use"] if peak > before["peak_bytes_in_use"] else None
  try:
    ctypes.CDLL(None).malloc_trim(0)  # or the call would find its memory among what was freed
    PEAKS.write_text(RESET_PEAK)
  except (OSError, AttributeError, TypeError):
    return None  # another system, or another C library
  before = _of_process("VmRSS")
  jax.block_until_ready(call())
  return max(0, _of_process("VmHWM") - before)


def _of_process(field: str) -> int:
  """A field of this process's status in bytes."""
  return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())[1])
