"""Several processes: starting jax on them, speaking once for all, agreeing, stopping together."""

import os
import re
import signal

import jax
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from gfnet_jax.errors import UserError


def initialize(
  coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
  """Connects the processes of a run; does nothing for a single one.

  TPU pods, SLURM and Open MPI are recognised by their environment. Must come before
  any other use of jax.

  Args:
    coordinator: host:port of process 0, where nothing is recognised.
    num_processes: of the run.
    process_id: of this process.

  Raises:
    UserError: if only some of the arguments are given or no connection comes about.
  """
  given = (coordinator, num_processes, process_id)
  if any(value is not None for value in given) and any(value is None for value in given):
    raise UserError("--coordinator, --num-processes and --process-id go together; give all three")
  if coordinator is None and not _is_cluster():
    return
  if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
    raise UserError(f"--coordinator is {coordinator!r}, expected host:port, such as host0:1234")
  jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of no effect elsewhere
  try:
    jax.distributed.initialize(coordinator, num_processes, process_id)
  except (RuntimeError, ValueError) as error:
    message = " ".join(str(error).split())
    raise UserError(f"cannot connect the processes of the run: {message}") from error


def _is_cluster() -> bool:
  """Whether jax recognises an environment of several processes started together.

  jax.distributed.initialize would ask the same, but fails where there is none.
  """
  for environment in ClusterEnv._cluster_types:
    if not environment.opt_in_only_method and environment.is_env_present():
      return environment.get_process_count() > 1
  return False


def say(line: str) -> None:
  """Prints a line, once for all processes."""
  if jax.process_index() == 0:
    print(line, flush=True)


def barrier(name: str) -> None:
  """Waits for all processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(value: int) -> int:
  """The value of process 0, on all processes."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.broadcast_one_to_all(value))


class Preemption:
  """A context in which SIGTERM or Ctrl-C to any process stops all after the same step."""

  def __enter__(self) -> "Preemption":
    self._signalled, self._asked = False, 0
    handlers = {signal.SIGINT: self._interrupt}
    if jax.process_count() == 1:  # otherwise jax listens, and lets the processes agree on a step
      handlers[signal.SIGTERM] = self._remember
    self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _remember(self, *_) -> None:
    self._signalled = True

  def _interrupt(self, *_) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait
    os.kill(os.getpid(), signal.SIGTERM)

  def reached(self) -> bool:
    """Whether the run is to stop now; every process asks after everything that all do."""
    if jax.process_count() == 1:
      return self._signalled
    self._asked += 1
    return multihost_utils.reached_preemption_sync_point(self._asked)
