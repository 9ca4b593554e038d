"""Checkpoints in a directory of a file system: complete as soon as they have their names."""

import shutil
import time
from pathlib import Path

from gfnet_jax.checkpoints.checksums import flush_to_disk


def complete(pending: Path, final: Path) -> None:
  """Gives a checkpoint that was written under another name its own."""
  old = final.with_name(f".replaced-{final.name}")  # found by the next run after a kill
  if final.exists():  # saved at a preemption, and now again with its evaluation
    final.rename(old)
  pending.rename(final)
  flush_to_disk(final.parent)  # before others are removed
  shutil.rmtree(old, ignore_errors=True)


def clear_up(directory: Path) -> None:
  """Removes what earlier runs or failures left; never while something is being written."""
  for unfinished in directory.glob(".pending-*"):
    shutil.rmtree(unfinished, ignore_errors=True)
  for replaced in directory.glob(".replaced-*"):
    final = directory / replaced.name.removeprefix(".replaced-")
    if final.exists():
      shutil.rmtree(replaced, ignore_errors=True)
    else:  # killed between moving the old one away and the new one into its place
      replaced.rename(final)


def remove(path: Path) -> None:
  """Removes a checkpoint; hidden first, as a removal cut off must not leave a damaged one."""
  hidden = path.with_name(f".pending-{path.name}")
  path.rename(hidden)
  shutil.rmtree(hidden, ignore_errors=True)  # if it fails, the next save tries again


def set_aside(path: Path) -> None:
  """Renames a damaged checkpoint."""
  path.rename(path.with_name(f"damaged-{path.name}-{time.time_ns()}"))
