"""Sending and fetching many objects of a store, which may be away for a while."""

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from gfnet_jax.buckets import UnavailableError
from gfnet_jax.text import printable

PATIENCE = 120.0  # seconds for which `patiently` tries again
_gone = threading.Event()  # it was waited for in vain
AT_ONCE = 8  # objects that are sent or fetched at the same time


def is_plain(name: str) -> bool:
  """Whether the name of an object leads, as a path, to a place below where it starts."""
  parts = PurePosixPath(name).parts
  return ".." not in parts and "\0" not in name and "/".join(parts) == name


def patiently(action: Callable[[], None]) -> None:
  """Does something that may be repeated, again for PATIENCE seconds while a store is away.

  Where that was in vain, the next actions are tried once, until one succeeds: a run does not
  wait for a store that is gone at every checkpoint.

  Raises:
    OSError: the last one, if it stays away; any other at once.
  """
  start, delay = time.monotonic(), 1.0
  while True:
    try:
      action()
      _gone.clear()
      return
    except UnavailableError as error:
      if _gone.is_set() or time.monotonic() - start > PATIENCE:
        _gone.set()
        raise
      if delay == 1:
        print(
          f"warning: {printable(error.filename)} cannot be reached ({error.strerror}); trying "
          f"again for {PATIENCE:.0f} s",
          flush=True,
        )
      time.sleep(delay)
      delay = min(2 * delay, 16.0)


def for_each(names: Iterable[str], action: Callable[[str], None]) -> None:
  """Does something for names, several at once; `patiently`, only for those not done yet."""
  left = set(names)

  def attempt() -> None:
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
      futures = {pool.submit(action, name): name for name in sorted(left)}
      try:
        for future in concurrent.futures.as_completed(futures):
          future.result()
          left.discard(futures[future])
      finally:
        pool.shutdown(cancel_futures=True)  # the rest would fail as well, one after the other

  patiently(attempt)
