"""Memory of the host that stays with the process, for training on CPUs."""

import ctypes
import importlib.metadata
import importlib.util
import os

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
  """Lets glibc keep freed memory instead of giving it back to the kernel.

  XLA allocates the temporaries of a CPU program anew in every call. The kernel then
  maps and clears every page again, a good part of the time of a training step.

  Call it before jax is imported: threads that already allocate keep their own pools.
  Does nothing where jax may find an accelerator, or without glibc.
  """
  if not _runs_on_cpu():
    return
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return  # another C library
  mallopt(M_MMAP_MAX, 0)
  mallopt(M_TRIM_THRESHOLD, -1)  # never
  mallopt(M_ARENA_MAX, 1)  # others could not hold large blocks


def _runs_on_cpu() -> bool:
  """Whether jax will, as far as can be told without starting it."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms:
    return platforms == "cpu"
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  return not plugins and importlib.util.find_spec("libtpu") is None
