"""Iterating over a Grain data set so that threads and worker processes end when they should.

Grain alone lets workers outlive a killed parent, finishes every batch that was begun
before it stops, and does not say which worker died.
"""

import atexit
import functools
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import Any, Protocol, SupportsIndex

import grain

from gfnet_jax.errors import UserError

FREEING = 0.2  # seconds
KILL_AFTER = 3.0  # seconds that workers have to stop by themselves

_stopped_by_parent = threading.Event()  # used in worker processes


class Samples(Protocol):
  """Random access to samples, picklable and safe for several threads."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: SupportsIndex) -> Any: ...


class _Stopped(Exception):
  """Raised in place of a sample that nobody waits for any more."""


class _Stoppable:
  """Samples that can be cut short, so that a batch need not be finished to stop."""

  def __init__(self, samples: Samples):
    self._samples = samples
    self.stopped = False

  def __len__(self) -> int:
    return len(self._samples)

  def __getitem__(self, index: SupportsIndex) -> Any:
    if self.stopped or _stopped_by_parent.is_set():
      raise _Stopped
    return self._samples[index]


def iterate_batches(
  samples: Samples, batch_size: int, first_batch: int, *, threads: int, prefetch: int, workers: int
) -> Iterator[Any]:
  """Yields batches of consecutive samples; closing the iterator ends all that it started.

  Args:
    samples: dictionaries of arrays or scalars; the samples of a batch are stacked.
    batch_size: samples in a batch; a last smaller one is yielded, too.
    first_batch: number of batches to leave out.
    threads: per process; each works on a batch of its own.
    prefetch: batches begun ahead, per process.
    workers: processes to spread the batches over; 0 reads in this process.

  Raises:
    UserError: if a worker process dies.
  """
  stoppable = _Stoppable(samples)
  batches = grain.MapDataset.source(stoppable).batch(batch_size)[first_batch:]
  batches = batches.to_iter_dataset(grain.ReadOptions(threads, prefetch))
  if workers:
    _let_grain_finish_at_exit()
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=1)
    batches = batches.mp_prefetch(options, worker_init_fn=_init_worker)
  iterator, crew = iter(batches), _Crew(workers)
  try:
    while True:
      try:
        yield crew.next_of(iterator)
      except StopIteration:
        return
  finally:
    stoppable.stopped = True
    crew.stop()
    iterator.close()
    crew.dismiss()
    if workers:
      # Grain's iterators hold their last batches, in shared memory, in circles.
      del iterator
      gc.collect()


@functools.cache
def _let_grain_finish_at_exit() -> None:
  """Grain frees shared memory in a thread that the end of the interpreter would cut off.

  Python would clean up after it, with a warning of leaked memory.
  """

  def finish() -> None:
    gc.collect()  # also what jax still holds of batches that it did not copy
    time.sleep(FREEING)

  atexit.register(finish)


class _Crew:
  """The worker processes of one iterator, which Grain starts at its own time."""

  def __init__(self, size: int):
    self._size = size
    # Iterators end in the opposite order of their beginning: the rest will be ours.
    self._others = set(multiprocessing.active_children())
    self._processes = set()
    self._timer = threading.Timer(KILL_AFTER, self._kill)
    self._timer.daemon = True

  def next_of(self, iterator: Iterator[Any]) -> Any:
    try:
      return next(iterator)
    except RuntimeError:  # Grain's error for a dead worker, among others
      self._raise_if_dead()
      raise
    finally:
      self._find()

  def _find(self) -> None:
    """Learns which processes are ours; they cannot be asked for once they have died."""
    if len(self._processes) < self._size:
      self._processes |= set(multiprocessing.active_children()) - self._others

  def _raise_if_dead(self) -> None:
    for process in self._processes:
      if process.exitcode:
        raise UserError(
          f"the input worker process {process.pid} ended with exit code {process.exitcode} "
          f"({_meaning(process.exitcode)}); if memory ran out, lower data.reading.workers or "
          "data.reading.prefetch"
        )

  def stop(self) -> None:
    """Tells the processes to stop, and kills those that do not."""
    self._find()
    alive = [process for process in self._processes if process.is_alive()]
    for process in alive:
      os.kill(process.pid, signal.SIGUSR1)
    if alive:  # at the end of the interpreter there are none, and no thread can be started
      self._timer.start()

  def dismiss(self) -> None:
    self._timer.cancel()

  def _kill(self) -> None:
    for process in self._processes:
      process.kill()


def _meaning(exit_code: int) -> str:
  return signal.Signals(-exit_code).name if exit_code < 0 else "an error of its own"


def _init_worker(index: int, count: int) -> None:
  """Runs first in every worker process: its life is the parent's to decide."""
  del index, count
  # Ctrl-C and a cluster's SIGTERM reach the whole group; the parent may still need batches.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  signal.signal(signal.SIGUSR1, lambda *_: _stopped_by_parent.set())
  die_with_parent()


def die_with_parent() -> None:
  """Lets this process of multiprocessing end when its parent does, even if that is killed."""

  def watch() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
