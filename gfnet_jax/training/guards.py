"""What accompanies a run from its first step to its last."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from gfnet_jax.checkpoints.store import Checkpoints
from gfnet_jax.distributed import Preemption
from gfnet_jax.training.lock import Lock
from gfnet_jax.training.nonfinite import NonFinite
from gfnet_jax.training.watchdog import Watchdog
from gfnet_jax.training.writer import Tracker


class Guards(NamedTuple):
  """What saves a run, what ends it before its last step, and who else gets its metrics."""

  checkpoints: Checkpoints
  nonfinite: NonFinite
  lock: Lock
  watchdog: Watchdog
  preemption: Preemption
  trackers: Sequence[Tracker] = ()

  def pulse(self) -> bool:
    """Tells that the run is alive; returns whether it is to stop.

    Every process calls it once after everything that all of them do together.

    Raises:
      UserError: if the work directory was moved, removed or taken over; of several
        processes, all stop instead.
    """
    if jax.process_count() == 1:
      self.lock.check()
    self.watchdog.advance()
    return self.preemption.reached()

  def pulse_or_stop(self) -> None:
    """As `pulse`.

    Raises:
      Stopped: if the run is to stop.
    """
    if self.pulse():
      raise Stopped

  def mark_stopped(self) -> None:
    """Tells the trackers that the run was stopped by a signal, to be continued later."""
    for tracker in self.trackers:
      tracker.outcome = "stopped"


class Stopped(Exception):
  """A signal asks the run to stop."""
