"""Iterating over samples in batches, with threads and processes that end when they should.

Grain has the threads. The processes are ours, and share nothing but a socket with their
parent: a lock that is shared stays taken when its holder is killed.
"""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import traceback
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any, BinaryIO, NamedTuple, Protocol, SupportsIndex

import grain

from gfnet_jax.data.parcels import AVAILABLE, pack, receive, send
from gfnet_jax.errors import UserError

# They reach the whole group of processes; the parent may still need batches.
PARENTS_SIGNALS = {signal.SIGINT, signal.SIGTERM}
REQUEST = b"\0"  # for one batch


class Samples(Protocol):
  """Random access to samples, picklable and safe for several threads."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: SupportsIndex) -> Any: ...


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
    UserError: if a worker process dies, or if this system has no worker processes.
    Exception: what the samples raise, at its place; from a worker process with its
      traceback as a note, and as a RuntimeError if it cannot be pickled.
  """
  options = grain.ReadOptions(threads, prefetch)
  if workers and not AVAILABLE:
    raise UserError(
      f"data.reading.workers is {workers}, expected 0 where there is no memfd_create (Linux has "
      "it); set data.reading.threads instead"
    )
  if workers:
    return _from_workers(samples, batch_size, first_batch, options, workers)
  return _from_threads(samples, batch_size, first_batch, options)


def _batches(samples: Samples, batch_size: int, first: int, step: int = 1) -> grain.MapDataset:
  return grain.MapDataset.source(samples).batch(batch_size)[first::step]


def _from_threads(
  samples: Samples, batch_size: int, first_batch: int, options: grain.ReadOptions
) -> Iterator[Any]:
  stoppable = _Stoppable(samples)
  iterator = iter(_batches(stoppable, batch_size, first_batch).to_iter_dataset(options))
  try:
    yield from iterator
  finally:
    stoppable.stopped = True
    iterator.close()


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
    if self.stopped:
      raise _Stopped
    return self._samples[index]


def _from_workers(
  samples: Samples, batch_size: int, first_batch: int, options: grain.ReadOptions, workers: int
) -> Iterator[Any]:
  count = len(_batches(samples, batch_size, first_batch))
  workers = min(workers, count)
  crew = _Crew()
  try:
    with pack(samples) as parcel:
      crew.hire(parcel, [(batch_size, first_batch + k, workers, options) for k in range(workers)])
    for i in range(count):
      yield crew.take(i % workers)
  finally:
    crew.dismiss()


class _Crew:
  """The worker processes of one iterator."""

  def __init__(self):
    self._workers: list[_Worker] = []
    # For iterators that are left open: runs before multiprocessing's own function, which
    # would wait for the workers for ever.
    atexit.register(self.dismiss)

  def hire(self, samples: BinaryIO, tasks: list[tuple]) -> None:
    """Starts a worker for each task: (batch_size, first, step, options)."""
    with _blocked_signals():
      for task in tasks:
        # Ours before it lives: a Ctrl-C may come in between, through another thread.
        self._workers.append(_Worker(task))
        self._workers[-1].start()
    for worker in self._workers:
      worker.begin(samples)

  def take(self, k: int) -> Any:
    """The next batch of worker k."""
    return self._workers[k].take()

  def dismiss(self) -> None:
    """Ends the workers at once: nobody waits for what they have begun.

    A second Ctrl-C may cut this off; then it happens once more at the end.
    """
    for worker in self._workers:
      worker.kill()
    while self._workers:
      self._workers.pop().bury()
    atexit.unregister(self.dismiss)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
  """Lets processes that are started here begin with the parent's signals blocked.

  So none ends them, or prints a traceback, before they can ignore it.
  """
  resource_tracker.ensure_running()  # else the first start of a process would unblock them
  before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
  """A process that makes batches, seen from its parent."""

  def __init__(self, task: tuple):
    self._socket, self._theirs = socket.socketpair()
    context = multiprocessing.get_context("spawn")  # jax has threads, which forbid to fork
    self._process = context.Process(target=_work, args=(self._theirs, *task), daemon=True)

  def start(self) -> None:
    with self._theirs:
      self._process.start()

  def begin(self, samples: BinaryIO) -> None:
    with contextlib.suppress(ConnectionError):  # a death is noticed by `take`
      send(self._socket, samples)
    self._request()

  def _request(self) -> None:
    with contextlib.suppress(ConnectionError):
      self._socket.send(REQUEST)

  def take(self) -> Any:
    """Waits for the next batch, and lets the one after it come.

    Raises:
      UserError: if the process has died.
      Exception: what the samples raised there.
    """
    try:
      result = receive(self._socket)
    except ConnectionError:
      raise self._death() from None
    self._request()
    if isinstance(result, _Failure):
      if not isinstance(result.error, UserError):
        result.error.add_note(f"in input worker process {self._process.pid}:\n{result.traceback}")
      raise result.error
    return result

  def _death(self) -> UserError:
    self._process.join()
    return UserError(
      f"the input worker process {self._process.pid} ended with exit code "
      f"{self._process.exitcode} ({_meaning(self._process.exitcode)}); if memory ran out, lower "
      "data.reading.workers or data.reading.prefetch"
    )

  def kill(self) -> None:
    if self._process.pid:
      self._process.kill()

  def bury(self) -> None:
    """Leaves nothing of a process that was killed."""
    if self._process.pid:
      self._process.join()
    self._process.close()
    self._socket.close()
    self._theirs.close()


def _meaning(exit_code: int) -> str:
  if exit_code < 0:
    names = {number.value: number.name for number in signal.Signals}
    return names.get(-exit_code, f"signal {-exit_code}")
  return "an error of its own" if exit_code else "before its last batch"


class _Failure(NamedTuple):
  """What comes from a worker in place of a batch that could not be made."""

  error: Exception
  traceback: str


def _work(parent: socket.socket, *task: Any) -> None:
  """The life of a worker process."""
  for number in PARENTS_SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS_SIGNALS)
  die_with_parent()
  with contextlib.suppress(ConnectionError):  # the parent has gone
    for parcel in _parcels(parent, *task):
      with parcel:
        if not parent.recv(len(REQUEST)):
          return
        send(parent, parcel)


def _parcels(
  parent: socket.socket, batch_size: int, first: int, step: int, options: grain.ReadOptions
) -> Iterator[BinaryIO]:
  """Packed batches, up to a packed _Failure if one cannot be made."""
  try:
    samples = receive(parent)
    yield from map(pack, _batches(samples, batch_size, first, step).to_iter_dataset(options))
  except Exception as error:  # whatever it is: the parent raises it in its place
    yield pack(_Failure(_portable(error), traceback.format_exc()))


def _portable(error: Exception) -> Exception:
  """An exception as it arrives after pickling, or one that says the same."""
  try:
    return pickle.loads(pickle.dumps(error))
  except Exception:
    return RuntimeError(f"{type(error).__name__}: {error}")


def die_with_parent() -> None:
  """Lets this process of multiprocessing end when its parent does, even if that is killed."""

  def watch() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
