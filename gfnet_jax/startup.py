"""Settings of the scripts that compute with jax; they must precede its first use."""

import ctypes
import importlib.metadata
import importlib.util
import os
from pathlib import Path

from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def start() -> None:
  """Keeps freed memory on a CPU, and compiled programs between runs.

  Call it before jax is imported: threads that already allocate keep their own pools.
  """
  keep_freed_memory()
  cache_compiled_programs()


def keep_freed_memory() -> None:
  """Lets glibc keep freed memory instead of giving it back to the kernel.

  XLA allocates the temporaries of a CPU program anew in every call. The kernel then
  maps and clears every page again, a good part of the time of a training step.

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


def cache_compiled_programs() -> None:
  """Lets jax store what it compiles and find it again in the next run.

  In JAX_COMPILATION_CACHE_DIR if that is set (empty: nowhere), else in gfnet_jax under
  XDG_CACHE_HOME or ~/.cache. A directory that cannot be written only costs a warning
  of jax. Programs that compile quickly are stored, too: there are many.
  """
  import jax  # here, or glibc would be told too late

  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return  # jax has read it
  caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  jax.config.update("jax_compilation_cache_dir", str(Path(caches) / "gfnet_jax"))


def check_devices() -> None:
  """Starts jax on its devices; several processes must be connected before.

  Raises:
    UserError: if a platform that JAX_PLATFORMS names is not there, or has no devices.
  """
  import jax

  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # jax asserts that there is any platform
    platforms = os.environ.get("JAX_PLATFORMS", "")
    reason = printable(str(error).partition(" (")[0] or "no such devices", limit=600)
    raise UserError(
      f"JAX_PLATFORMS is {platforms!r}, and jax finds nothing to compute on ({reason}); unset it, "
      "set it to cpu, or install jax for these devices"
    ) from error
