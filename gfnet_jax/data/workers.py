"""Batches of samples, made ahead by threads or by worker processes that end when they should.

The worker processes share nothing with their parent but a socket: a shared lock would stay
locked once the process that holds it is killed. They import only what the samples need, so that
starting them is quick.
"""

import atexit
import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from gfnet_jax.data.child_processes import PARENTS_SIGNALS, blocked_signals, exit_with_parent
from gfnet_jax.data.shared_memory import AVAILABLE, pack, receive, send
from gfnet_jax.data.threads import Batch, BatchThreads, Samples
from gfnet_jax.errors import UserError


def iterate_batches(
  samples: Samples, order: Iterable[Sequence[Any]], *, threads: int, prefetch: int, workers: int
) -> Iterator[Batch]:
  """Yields batches of samples; closing the iterator ends everything it started.

  Args:
    samples: stacked to batches; picklable, if there are workers.
    order: for every batch, the keys of its samples; picklable as well.
    threads: per process; each works on a batch of its own.
    prefetch: batches that are made ahead, per process; at least one.
    workers: processes among which the batches are divided; 0 makes them in this process.

  Raises:
    UserError: if a worker process dies, or this system cannot have worker processes.
    Exception: what the samples raise, in place of the batch; from a worker process with
      its traceback as a note, and as a RuntimeError if it cannot be pickled.
  """
  if workers and not AVAILABLE:
    raise UserError(
      f"data.reading.workers is {workers}, expected 0 on a system without memfd_create (Linux "
      "has it); set data.reading.threads instead"
    )
  return _made_ahead(samples, order, threads, max(1, prefetch), workers)


def _made_ahead(
  samples: Samples, order: Iterable[Sequence[Any]], threads: int, prefetch: int, workers: int
) -> Iterator[Batch]:
  order = iter(order)
  maker = _WorkerPool(samples, threads, workers) if workers else BatchThreads(samples, threads)
  with contextlib.closing(maker):
    first = [*itertools.islice(order, prefetch * max(1, workers))]
    for keys in first:
      maker.request(keys)
    for keys in order:
      yield _take_and_request(maker, keys)
    for _ in first:
      yield maker.next_batch()


def _take_and_request(maker: "BatchThreads | _WorkerPool", keys: Sequence[Any]) -> Batch:
  batch = maker.next_batch()
  maker.request(keys)
  return batch


def _packed(samples: Samples) -> BinaryIO:
  """The samples as a message to the workers.

  Raises:
    UserError: if they cannot be pickled: a source or an augmentation of one's own, perhaps.
  """
  try:
    return pack(samples)
  except (AttributeError, TypeError, pickle.PicklingError) as error:
    raise UserError(
      f"the source or the augmentation cannot be sent to worker processes ({error}); make them "
      "picklable, or set data.reading.workers=0"
    ) from error


class _WorkerPool:
  """The worker processes of one iterator, which take turns; started as they are needed."""

  def __init__(self, samples: Samples, threads: int, size: int):
    self._samples, self._threads, self._size = _packed(samples), threads, size
    self._workers: list[_Worker] = []
    self._requested = self._taken = 0
    # For iterators that are never closed. Runs before multiprocessing's own function, which
    # would wait for the workers forever.
    atexit.register(self.close)

  def request(self, keys: Sequence[Any]) -> None:
    """Requests a batch, of a new worker as long as there are fewer than the size of the pool."""
    if len(self._workers) < self._size:
      self._start_worker()
    self._workers[self._requested % self._size].request(keys)
    self._requested += 1

  def _start_worker(self) -> None:
    with blocked_signals():
      # In the list before it runs: Ctrl-C may come in between, through another thread.
      self._workers.append(_Worker(self._threads))
      self._workers[-1].start()
    self._workers[-1].send(self._samples)

  def next_batch(self) -> Batch:
    """Waits for the earliest batch that was requested and not taken yet."""
    self._taken += 1
    return self._workers[(self._taken - 1) % self._size].next_batch()

  def close(self) -> None:
    """Ends the workers at once: nobody waits for the batches that they have begun.

    A second Ctrl-C may interrupt this; then it is done at exit.
    """
    for worker in self._workers:
      worker.kill()
    while self._workers:
      self._workers.pop().close()
    self._samples.close()
    atexit.unregister(self.close)


class _Worker:
  """A process that makes batches, as its parent sees it."""

  def __init__(self, threads: int):
    self._socket, self._child_socket = socket.socketpair()
    context = multiprocessing.get_context("spawn")  # jax has threads, so forking is unsafe
    self._process = context.Process(target=_work, args=(self._child_socket, threads), daemon=True)

  def start(self) -> None:
    with self._child_socket:
      self._process.start()

  def request(self, keys: Sequence[Any]) -> None:
    with pack(keys) as message:
      self.send(message)

  def send(self, message: BinaryIO) -> None:
    with contextlib.suppress(ConnectionError):  # `next_batch` will notice that it has died
      send(self._socket, message)

  def next_batch(self) -> Batch:
    """Waits for the next batch.

    Raises:
      UserError: if the process has died.
      Exception: what the samples raised there.
    """
    try:
      result = receive(self._socket)
    except ConnectionError:
      raise self._death() from None
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

  def close(self) -> None:
    """Frees all resources of a process that was killed."""
    if self._process.pid:
      self._process.join()
    self._process.close()
    self._socket.close()
    self._child_socket.close()


def _meaning(exit_code: int) -> str:
  if exit_code < 0:
    names = {number.value: number.name for number in signal.Signals}
    return names.get(-exit_code, f"signal {-exit_code}")
  return "an error of its own" if exit_code else "before its last batch"


class _Failure(NamedTuple):
  """What a worker sends in place of a batch that it could not make."""

  error: Exception
  traceback: str


def _work(parent: socket.socket, threads: int) -> None:
  """Runs in the worker process: sends a batch per request, in their order, until it is killed."""
  for number in PARENTS_SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS_SIGNALS)
  exit_with_parent()
  with contextlib.suppress(ConnectionError):  # the parent is gone
    _send_batches(parent, threads)
  os._exit(0)  # at once: nobody waits for what the threads have begun


def _send_batches(parent: socket.socket, threads: int) -> None:
  """Up to the first one that cannot be made: a _Failure is sent in its place."""
  try:
    maker = BatchThreads(receive(parent), threads)
    threading.Thread(target=_take_requests, args=(parent, maker), daemon=True).start()
    while True:
      with pack(maker.next_batch()) as message:
        send(parent, message)
  except Exception as error:  # of any kind: the parent raises it
    with pack(_Failure(_picklable(error), traceback.format_exc())) as message:
      send(parent, message)


def _take_requests(parent: socket.socket, maker: BatchThreads) -> None:
  """Ends the process with the requests, or where they cannot be read: it would wait forever."""
  try:
    while True:
      maker.request(receive(parent))
  except ConnectionError:  # the parent is gone
    os._exit(0)
  except Exception:  # of any kind, with no one to raise it to
    traceback.print_exc()
    os._exit(1)


def _picklable(error: Exception) -> Exception:
  """The exception as it arrives after pickling, or one that says the same."""
  if not isinstance(error, StopIteration):  # which would end the iterator that raises it
    with contextlib.suppress(Exception):  # of any kind: it comes from code of the error's own class
      return pickle.loads(pickle.dumps(error))
  return RuntimeError(f"{type(error).__name__}: {error}")
