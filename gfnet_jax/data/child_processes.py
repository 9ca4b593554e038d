"""Child processes that end with their parent, and leave its signals to it.

Little is imported with this module, since the processes start with it.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

# A terminal or scheduler sends them to the whole process group, but the parent may still
# need batches: workers ignore them.
PARENTS_SIGNALS = {signal.SIGINT, signal.SIGTERM}


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
  """Has processes that are started here begin with PARENTS_SIGNALS blocked.

  Otherwise a signal could end them, or print a traceback, before they are able to ignore it.
  """
  resource_tracker.ensure_running()  # or else the first start of a process would unblock them
  before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent() -> None:
  """Makes this child process exit when its parent does, even if the parent is killed."""

  def watch() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
