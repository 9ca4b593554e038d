"""Compiled programs kept between runs."""

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
  """Lets jax store what it compiles and find it again in the next run.

  In JAX_COMPILATION_CACHE_DIR if that is set (empty: nowhere), else in gfnet_jax under
  XDG_CACHE_HOME or ~/.cache. A directory that cannot be written only costs a warning
  of jax. Programs that compile quickly are stored, too: there are many.
  """
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return  # jax has read it
  caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  jax.config.update("jax_compilation_cache_dir", str(Path(caches) / "gfnet_jax"))
