"""Batches made by threads, in the order in which they are requested."""

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

Batch = dict[str, np.ndarray]


class Samples(Protocol):
  """Samples by key, as dictionaries of arrays or scalars; safe for several threads.

  A key is whatever a sample is made from, such as its position.
  """

  def __getitem__(self, key: Any) -> dict[str, Any]: ...


class BatchThreads:
  """Makes batches of samples.

  Args:
    samples: to be stacked.
    threads: each works on a batch of its own; 0 makes a batch when it is taken.
  """

  def __init__(self, samples: Samples, threads: int):
    self._samples, self._closed = samples, False
    self._pool = ThreadPoolExecutor(threads) if threads else None
    self._requested: queue.SimpleQueue[Callable[[], Batch]] = queue.SimpleQueue()

  def request(self, keys: Sequence[Any]) -> None:
    """Requests the batch of the samples with these keys."""
    if self._pool:
      self._requested.put(self._pool.submit(self._make, keys).result)
    else:
      self._requested.put(lambda: self._make(keys))

  def next_batch(self) -> Batch:
    """Waits for the earliest batch that was requested and not taken yet.

    Raises:
      Exception: what its samples raised.
    """
    return self._requested.get()()

  def close(self) -> None:
    """Ends the threads, without finishing the batches that nobody waits for any more."""
    self._closed = True
    if self._pool:
      self._pool.shutdown(cancel_futures=True)

  def _make(self, keys: Sequence[Any]) -> Batch:
    samples = []
    for key in keys:
      if self._closed:
        raise CancelledError
      samples.append(self._samples[key])
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
