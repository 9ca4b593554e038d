"""Several processes: starting jax on them, speaking once for all, agreeing, stopping together."""

import contextlib
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
from jax._src import distributed as jax_distributed
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

Result = TypeVar("Result")

CONNECT_TIMEOUT = 300.0  # seconds that the processes of a run wait for each other, as jax has it
SAY_AFTER = 10.0  # seconds without a connection after which a line says who is waited for
EXCHANGE_TIMEOUT = 3600.0  # seconds; opening a large data set for the first time takes minutes
_exchanges = itertools.count()


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
  if coordinator is not None and not _is_address(coordinator):
    raise UserError(f"--coordinator is {coordinator!r}, expected host:port, such as host0:1234")
  try:
    environment = None if coordinator else _recognised()
    if environment:
      coordinator = os.environ.get(
        "JAX_COORDINATOR_ADDRESS"
      ) or environment.get_coordinator_address(
        timeout_secs=int(CONNECT_TIMEOUT),
        override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT"),
      )
      num_processes, process_id = environment.get_process_count(), environment.get_process_id()
    if coordinator is None:
      return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of no effect elsewhere
    with _waiting(_describe_wait(coordinator, num_processes, process_id, environment)):
      # Ours ends first: after its own time jax ends the process with a stack of C++.
      limit = int(CONNECT_TIMEOUT + 60)
      jax.distributed.initialize(
        coordinator, num_processes, process_id, initialization_timeout=limit
      )
  except (RuntimeError, ValueError) as error:
    raise UserError(f"cannot connect the processes of the run: {printable(error)}") from error


def _is_address(text: str) -> bool:
  match = re.fullmatch(r".+:(\d{1,5})", text)
  return match is not None and 0 < int(match[1]) < 2**16


def _recognised() -> type[ClusterEnv] | None:
  """The environment of several processes started together that jax recognises, if any.

  jax.distributed.initialize would ask the same, but fails where there is none.
  """
  for environment in ClusterEnv._cluster_types:
    if not environment.opt_in_only_method and environment.is_env_present():
      return environment if environment.get_process_count() > 1 else None
  return None


def _describe_wait(
  coordinator: str, num_processes: int, process_id: int, environment: type[ClusterEnv] | None
) -> str:
  others = f"the other {num_processes - 1}" if process_id == 0 else "process 0"
  told = f", which the variables of {environment.name} tell" if environment else ""
  return (
    f"process {process_id} of {num_processes} waits for {others} at {printable(coordinator)}{told}"
  )


@contextlib.contextmanager
def _waiting(what: str) -> Iterator[None]:
  """Says what is waited for inside if that takes long, and ends this process after a limit."""
  connected = threading.Event()

  def watch() -> None:
    if connected.wait(SAY_AFTER):
      return
    print(f"{what} (at most {CONNECT_TIMEOUT:.0f} s)", file=sys.stderr, flush=True)
    if connected.wait(CONNECT_TIMEOUT - SAY_AFTER):
      return
    print(
      f"error: {what}, in vain for {CONNECT_TIMEOUT:.0f} s; start all processes of the run with "
      "the same --coordinator and --num-processes; for a single process unset the variables of "
      "SLURM or MPI",
      file=sys.stderr,
      flush=True,
    )
    os._exit(2)  # the main thread is inside jax and cannot be interrupted

  threading.Thread(target=watch, name="connecting", daemon=True).start()
  try:
    yield
  finally:
    connected.set()


def barrier(name: str) -> None:
  """Waits for all processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(value: int) -> int:
  """The value of process 0, on all processes."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.broadcast_one_to_all(value))


def exchange(text: str) -> list[str]:
  """The texts of all processes, in their order; all call this equally often.

  It needs no devices, which may differ between the processes.

  Raises:
    UserError: if a process does not call it in time.
  """
  if jax.process_count() == 1:
    return [text]
  client, number = jax_distributed.global_state.client, next(_exchanges)
  prefix = f"gfnet_jax/{number}/"
  try:
    client.key_value_set(f"{prefix}{jax.process_index()}", text)
    client.wait_at_barrier(f"gfnet_jax-{number}", int(1000 * EXCHANGE_TIMEOUT))
    texts = {int(key.rpartition("/")[2]): found for key, found in client.key_value_dir_get(prefix)}
    if jax.process_index() == 0 and number:  # which all have read
      client.key_value_delete(f"gfnet_jax/{number - 1}/")
  except jax.errors.JaxRuntimeError as error:
    raise UserError(f"not all processes of the run were heard: {printable(error)}") from error
  return [texts[process] for process in range(jax.process_count())]


def together(function: Callable[[], Result]) -> Result:
  """Calls a function in every process; an error in one of them is a UserError in the others.

  Otherwise they would wait for that one.
  """
  result, error = None, None
  try:
    result = function()
  except Exception as found:  # raised again below
    error = found
  named = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
  messages = exchange(f"{named}{error}" if error else "")
  if error:
    raise error
  for process, message in enumerate(messages):
    if message:
      raise UserError(f"process {process}: {message}")
  return result


class Preemption:
  """A context in which SIGTERM or Ctrl-C to any process stops all after the same step.

  Outside of the main thread, where Python allows no handlers, signals stay as they are.
  """

  def __enter__(self) -> "Preemption":
    self._signalled, self._asked = False, 0
    self._before = {}
    if threading.current_thread() is not threading.main_thread():
      return self
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
