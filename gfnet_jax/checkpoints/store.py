"""Checkpoints that keep their promise: asynchronous, atomic, checksummed, verified.

Layout of a directory of checkpoints:

    00001200/            one checkpoint, named after its step; complete as soon as it exists
      metadata.json      the step, and what the caller adds: model, config, metrics, ...
      params/ ...        trees of arrays, written by Orbax
      sha256.json        the SHA-256 sum of every other file
    .pending-00001300/   being written; never read, removed by the next run

In a store (`buckets`) a checkpoint is complete when sha256.json is there. It is written to a local
directory first, and uploaded from there: steps wait for no network.

The sums are needed because Orbax restores flipped bits without noticing.
"""

import concurrent.futures
import contextlib
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from gfnet_jax.buckets import BucketPath
from gfnet_jax.checkpoints import disk
from gfnet_jax.checkpoints.checksums import DamagedError, write_checksums
from gfnet_jax.checkpoints.finding import best_of, list_steps, place_of, set_aside
from gfnet_jax.checkpoints.metadata import METADATA, serialize_metadata
from gfnet_jax.checkpoints.reading import checkpoint_path, read_metadata, verify
from gfnet_jax.distributed import together
from gfnet_jax.errors import UserError
from gfnet_jax.files import make_directory
from gfnet_jax.text import printable

PyTree = Any
WRITE_TIMEOUT = 1200.0  # seconds, of Orbax


class Checkpoints:
  """The checkpoints of one run: saves in the background and keeps those worth keeping.

  Kept are the newest, the best, and those whose metadata says "keep": true. What is damaged
  is named and set aside, never removed.
  A save that fails, for instance on a full disk, is reported and does not end the run.
  All processes of a run call the same methods; process 0 completes what all have written.
  As a context manager it closes itself; an error inside takes precedence over its own.

  Args:
    directory: created if missing; shared by all processes. Into a store, process 0 writes for
      all: no other one could see what it has on a disk of its own.
    keep_last: how many of the newest to keep.
    timeout: seconds after which a process that has not written its part fails the save.
    best_metric: key in the metadata's "metrics" by which the best is the greatest.
    confirm: raises an exception if the directory is no longer the caller's; asked before
      a checkpoint is completed and old ones are removed.

  Raises:
    UserError: if the directory cannot be written.
  """

  def __init__(
    self,
    directory: Path | BucketPath,
    *,
    keep_last: int = 2,
    timeout: float = WRITE_TIMEOUT,
    best_metric: str = "top1",
    confirm: Callable[[], None] = lambda: None,
  ):
    self.directory, self._keep_last, self._best_metric = directory, keep_last, best_metric
    self._timeout = timeout
    self._confirm = confirm
    self._place, self._scratch = place_of(directory), None
    together(self._prepare)
    if isinstance(directory, BucketPath):
      self._scratch = tempfile.TemporaryDirectory(prefix="gfnet_jax-", ignore_cleanup_errors=True)
    self._local = Path(self._scratch.name) if self._scratch else directory
    self._writer = self._make_writer()
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    self._commit: concurrent.futures.Future | None = None
    self._failure: str | None = None

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, error: type[BaseException] | None, *_) -> None:
    if error is None:
      self.close()
    elif issubclass(error, Exception):  # an interrupt does not wait
      with contextlib.suppress(UserError):  # what went wrong first says more
        self.close()

  def save(self, step: int, trees: Mapping[str, PyTree], metadata: Mapping[str, Any]) -> None:
    """Saves trees of arrays by name; returns once they are copied, writes in the background."""
    self.wait()
    if jax.process_index() == 0:
      disk.clear_up(self._local)  # what a failure left behind would fill the disk
    if self._scratch:
      trees = jax.tree.map(_whole, dict(trees))
      if jax.process_index() != 0:
        return
    pending = self._local / f".pending-{step:08d}"
    metadata = {"step": step, **metadata}
    try:
      self._writer.save(pending.absolute(), args=_save_args(trees), force=True)
    except Exception as error:  # Orbax and TensorStore raise many kinds
      self._report(step, error)
    else:
      self._commit = self._thread.submit(self._finish, pending, step, metadata)

  def wait(self) -> None:
    """Waits until the checkpoint being written is complete or has failed."""
    if self._commit is not None:
      commit, self._commit = self._commit, None
      commit.result()

  def close(self) -> None:
    """Completes the checkpoint being written and ends the background threads.

    Raises:
      UserError: if the last checkpoint could not be written.
    """
    self.wait()
    self._thread.shutdown()
    self._writer.close()
    if jax.process_index() == 0:
      disk.clear_up(self._local)
    if self._scratch:
      self._scratch.cleanup()
    if self._failure:
      advice = "when it can be written to, start" if self._scratch else "make room and start"
      raise UserError(f"{self._failure}; {advice} the run again")

  def _finish(self, pending: Path, step: int, metadata: dict) -> None:
    try:
      self._writer.wait_until_finished()
      if jax.process_index() == 0:
        self._confirm()
        self._complete(pending, checkpoint_path(self.directory, step), metadata)
      self._failure = None
    except Exception as error:  # as in `save`
      self._report(step, error)
    else:
      if jax.process_index() == 0:
        self._tidy()

  def _complete(self, pending: Path, final: Path | BucketPath, metadata: dict) -> None:
    (pending / METADATA).write_text(serialize_metadata(metadata))
    write_checksums(pending)
    if self._scratch:
      self._place.clear_up(self.directory)  # what a failure left in the store
    self._place.complete(pending, final)
    if self._scratch:
      shutil.rmtree(pending, ignore_errors=True)

  def _report(self, step: int, error: Exception) -> None:
    reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    reason = printable(reason, limit=200)
    self._failure = f"the checkpoint of step {step} could not be written to {self.directory}"
    self._failure += f" ({reason})"
    if jax.process_index() == 0:
      print(f"warning: {self._failure}; the next one will be tried", flush=True)
    self._writer = self._make_writer()  # the old one would raise the error once more

  def _prepare(self) -> None:
    if jax.process_index() == 0:
      make_directory(self.directory)
      self._place.clear_up(self.directory)

  def _make_writer(self) -> ocp.AsyncCheckpointer:
    processes = ocp.options.MultiprocessingOptions()
    if self._scratch:  # of this process alone, which waits for no other one
      this = jax.process_index()
      processes = ocp.options.MultiprocessingOptions(this, {this}, f"process-{this}")
    composite = ocp.CompositeOptions(multiprocessing_options=processes)
    return ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(composite_options=composite),
      timeout_secs=math.ceil(self._timeout),
      multiprocessing_options=processes,
    )

  def _tidy(self) -> None:
    """Removes what need not be kept; if that fails, the next save tries again."""
    try:
      self._remove_old()
    except (OSError, UserError) as error:
      reason = printable(error, limit=4000)
      print(f"warning: old checkpoints could not be removed ({reason})", flush=True)

  def _remove_old(self) -> None:
    """Removes what need not be kept; what is damaged is named and set aside instead.

    The best is verified whole before others go for its sake, and so is what goes: nobody
    should learn of a damage by a checkpoint that is no longer there.
    """
    metadata = {}
    for step in list_steps(self.directory):
      with self._setting_aside(step):
        metadata[step] = read_metadata(self.directory, step)
    if len(metadata) <= self._keep_last:
      return
    while (best := best_of(metadata, self._best_metric)) is not None:
      with self._setting_aside(best):
        verify(self.directory, best)
        break
      del metadata[best]
    keep = {*sorted(metadata)[-self._keep_last :], best}
    for step in metadata:
      if step in keep or metadata[step].get("keep"):
        continue
      with self._setting_aside(step):
        verify(self.directory, step)
        self._place.remove(checkpoint_path(self.directory, step))

  @contextlib.contextmanager
  def _setting_aside(self, step: int) -> Iterator[None]:
    """Names and sets aside the checkpoint that turns out to be damaged inside."""
    try:
      yield
    except DamagedError as error:
      print(f"warning: {printable(error, limit=4000)}; set aside", flush=True)
      set_aside(self.directory, step)


def _save_args(trees: Mapping[str, PyTree]) -> ocp.args.Composite:
  trees = {name: jax.tree.map(_one_copy, tree) for name, tree in trees.items()}
  return ocp.args.Composite(**{name: ocp.args.StandardSave(tree) for name, tree in trees.items()})


def _one_copy(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
  """A replicated array as one device has it: Orbax would take a slice from each, at a cost."""
  replicated = jax.process_count() == 1 and array.is_fully_replicated
  return array.addressable_data(0) if replicated else array


def _whole(array: jax.Array) -> jax.Array | np.ndarray:
  """An array as a device of this process has it, or gets it from the others."""
  if jax.process_count() == 1:
    return array
  if not array.is_fully_replicated:
    whole = NamedSharding(array.sharding.mesh, PartitionSpec())
    array = jax.jit(lambda x: x, out_shardings=whole)(array)
  return np.asarray(array.addressable_data(0))  # Orbax takes no array of one process of several
