"""Batches of samples, read by threads and by worker processes that end when they should.

The threads are Grain's. The worker processes are ours, and share nothing with their parent
but a socket: a shared lock would stay locked once the process that holds it is killed.
"""

import atexit
import contextlib
import multiprocessing
import pickle
import signal
import socket
import traceback
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, Protocol, SupportsIndex

import grain

from gfnet_jax.data.child_processes import PARENTS_SIGNALS, blocked_signals, exit_with_parent
from gfnet_jax.data.shared_memory import AVAILABLE, pack, receive, send
from gfnet_jax.errors import UserError

REQUEST = b"\0"  # for one batch


class Samples(Protocol):
  """Random access to samples, picklable and safe for several threads."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: SupportsIndex) -> Any: ...


def iterate_batches(
  samples: Samples, batch_size: int, first_batch: int, *, threads: int, prefetch: int, workers: int
) -> Iterator[Any]:
  """Yields batches of consecutive samples; closing the iterator ends everything it started.

  Args:
    samples: dictionaries of arrays or scalars; the samples of a batch are stacked.
    batch_size: samples in a batch; a smaller last batch is yielded as well.
    first_batch: number of batches to leave out at the beginning.
    threads: per process; each works on a batch of its own.
    prefetch: batches that are read ahead, per process.
    workers: processes among which the batches are divided; 0 reads in this process.

  Raises:
    UserError: if a worker process dies, or this system cannot have worker processes.
    Exception: what the samples raise, in place of the batch; from a worker process with
      its traceback as a note, and as a RuntimeError if it cannot be pickled.
  """
  options = grain.ReadOptions(threads, prefetch)
  if workers and not AVAILABLE:
    raise UserError(
      f"data.reading.workers is {workers}, expected 0 on a system without memfd_create (Linux "
      "has it); set data.reading.threads instead"
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
  """Samples that can be stopped, so that a thread need not finish its batch first."""

  def __init__(self, samples: Samples):
    self._samples = samples
    self.stopped = False

  def __len__(self) -> int:
    return len(self._samples)

  def __getitem__(self, index: SupportsIndex) -> Any:
    if self.stopped:
      raise _Stopped
    return self._samples[index]


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


def _from_workers(
  samples: Samples, batch_size: int, first_batch: int, options: grain.ReadOptions, workers: int
) -> Iterator[Any]:
  count = len(_batches(samples, batch_size, first_batch))
  workers = min(workers, count)
  pool = _WorkerPool()
  try:
    with _packed(samples) as message:
      pool.start(message, [(batch_size, first_batch + k, workers, options) for k in range(workers)])
    for i in range(count):
      yield pool.next_batch(i % workers)
  finally:
    pool.close()


class _WorkerPool:
  """The worker processes of one iterator."""

  def __init__(self):
    self._workers: list[_Worker] = []
    # For iterators that are never closed. Runs before multiprocessing's own function, which
    # would wait for the workers forever.
    atexit.register(self.close)

  def start(self, samples: BinaryIO, tasks: list[tuple]) -> None:
    """Starts one worker per task, (batch_size, first, step, options), and sends it the samples."""
    with blocked_signals():
      for task in tasks:
        # In the list before it runs: Ctrl-C may come in between, through another thread.
        self._workers.append(_Worker(task))
        self._workers[-1].start()
    for worker in self._workers:
      worker.send_samples(samples)

  def next_batch(self, k: int) -> Any:
    """The next batch of worker k."""
    return self._workers[k].next_batch()

  def close(self) -> None:
    """Ends the workers at once: nobody waits for the batches that they have begun.

    A second Ctrl-C may interrupt this; then it is done at exit.
    """
    for worker in self._workers:
      worker.kill()
    while self._workers:
      self._workers.pop().close()
    atexit.unregister(self.close)


class _Worker:
  """A process that makes batches, as its parent sees it."""

  def __init__(self, task: tuple):
    self._socket, self._child_socket = socket.socketpair()
    context = multiprocessing.get_context("spawn")  # jax has threads, so forking is unsafe
    self._process = context.Process(target=_work, args=(self._child_socket, *task), daemon=True)

  def start(self) -> None:
    with self._child_socket:
      self._process.start()

  def send_samples(self, samples: BinaryIO) -> None:
    with contextlib.suppress(ConnectionError):  # `next_batch` will notice that it has died
      send(self._socket, samples)
    self._request()

  def _request(self) -> None:
    with contextlib.suppress(ConnectionError):
      self._socket.send(REQUEST)

  def next_batch(self) -> Any:
    """Waits for the next batch, and requests the one after it.

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


def _work(parent: socket.socket, *task: Any) -> None:
  """Runs in the worker process: sends one batch per request until the parent is gone."""
  for number in PARENTS_SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS_SIGNALS)
  exit_with_parent()
  with contextlib.suppress(ConnectionError):  # the parent is gone
    for message in _messages(parent, *task):
      with message:
        if not parent.recv(len(REQUEST)):
          return
        send(parent, message)


def _messages(
  parent: socket.socket, batch_size: int, first: int, step: int, options: grain.ReadOptions
) -> Iterator[BinaryIO]:
  """Packed batches; if one cannot be made, a packed _Failure in its place, and the end."""
  try:
    samples = receive(parent)
    yield from map(pack, _batches(samples, batch_size, first, step).to_iter_dataset(options))
  except Exception as error:  # of any kind: the parent raises it
    yield pack(_Failure(_picklable(error), traceback.format_exc()))


def _picklable(error: Exception) -> Exception:
  """The exception as it arrives after pickling, or one that says the same."""
  try:
    return pickle.loads(pickle.dumps(error))
  except Exception:  # of any kind: it is raised by code of the error's own class
    return RuntimeError(f"{type(error).__name__}: {error}")
