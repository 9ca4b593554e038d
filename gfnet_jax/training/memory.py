"""Whether the training step fits the memory of the devices, and what to change if not."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import ml_collections

from gfnet_jax.distributed import together
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable
from gfnet_jax.training.config_rules import mixes
from gfnet_jax.training.run import Run


class Plan(NamedTuple):
  """What XLA plans to hold on one device while a program runs, in bytes.

  Attributes:
    resident: arguments and results; what a donated argument leaves to a result counts once.
    temporary: all between them.
  """

  resident: int
  temporary: int

  def excess(self, limit: int) -> float:
    """The factor by which what is temporary is too large; infinite if what is resident is."""
    room = limit - self.resident
    return self.temporary / room if room > 0 else math.inf


def read_plan(compiled: jax.stages.Compiled) -> Plan | None:
  """The plan for a compiled program; None on a platform that does not tell."""
  memory = compiled.memory_analysis()
  if memory is None:
    return None
  resident = memory.argument_size_in_bytes + memory.output_size_in_bytes
  return Plan(resident - memory.alias_size_in_bytes, memory.temp_size_in_bytes)


def memory_limit() -> int | None:
  """The bytes that jax may use of each device here; None where it does not tell, as on a CPU."""
  limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
  return min(limits) if all(limits) else None


def check_memory(run: Run, arguments: tuple) -> None:
  """Compiles the training step, and compares its plan with the memory that is there.

  Its first call with such arguments finds it compiled. Nothing is done on a CPU. All
  processes call this together.

  Args:
    run: of the step.
    arguments: of its first call.

  Raises:
    UserError: in every process, if it needs more than a device has.
  """

  def check() -> None:
    limit = memory_limit()
    if limit is None:
      return
    with explain_shortage(lambda: advise(run.config, run.mesh.size)):
      plan = read_plan(run.program.train.lower(*arguments).compile())
    if plan is None or sum(plan) <= limit:
      return
    advice = advise(run.config, run.mesh.size, plan.excess(limit))
    raise UserError(
      f"a training step needs {sum(plan) / 1e9:.3g} GB on every device, of which jax may use "
      f"{limit / 1e9:.3g} GB ({_device_kind()}); {_choice(advice)}"
    )

  together(check)


@contextlib.contextmanager
def explain_shortage(advice: Callable[[], list[str]]) -> Iterator[None]:
  """Makes of XLA's refusal for want of memory, inside, one line with advice.

  Raises:
    UserError: instead of jax's RESOURCE_EXHAUSTED.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if not str(error).startswith("RESOURCE_EXHAUSTED"):
      raise
    raise UserError(
      f"the memory of the devices ({_device_kind()}) is too small ({printable(error, 400)}); "
      f"{_choice(advice())}"
    ) from error


def advise(config: ml_collections.ConfigDict, devices: int = 1, excess: float = 2.0) -> list[str]:
  """Overrides with which a training step needs less memory, the most useful first.

  All but a smaller batch change results by rounding and the draws of stochastic depth only.

  Args:
    config: of the run.
    devices: over which its batches are split.
    excess: the factor by which the temporaries are too large; infinite if the state
      alone is.

  Returns:
    Such as ["--config.model.remat=True"]; nothing that the config has already.
  """
  advice = []
  if math.isinf(excess) and devices > 1 and config.sharding != "fsdp":
    advice.append("--config.sharding=fsdp")
  if not config.model.remat:
    advice.append("--config.model.remat=True")
  batch_size, parts = config.data.batch_size, config.optimizer.accumulate_steps
  rows = batch_size // devices
  for more in range(parts + 1, rows + 1):
    if more >= parts * excess and rows % more == 0:
      advice.append(f"--config.optimizer.accumulate_steps={more}")
      break
  for smaller in range(batch_size - 1, 0, -1):
    fits = smaller <= batch_size / excess
    if fits and batch_size % smaller == smaller % (devices * parts) == 0:
      before, group = config.mixing.group_size, _group_size(config, smaller // devices)
      if group == before:
        advice.append(f"--config.data.batch_size={smaller}")
        break
      if group % 2 == 0:  # mixup pairs the images of a group
        advice.append(f"--config.data.batch_size={smaller} --config.mixing.group_size={group}")
        break
  return advice


def _group_size(config: ml_collections.ConfigDict, rows: int) -> int:
  """The largest with which no group of mixup spans devices of so many rows."""
  size = config.mixing.group_size
  return math.gcd(size, rows) if mixes(config.mixing) else size


def _choice(advice: list[str]) -> str:
  if not advice:
    return "use more devices, or devices with more memory"
  *others, last = advice
  return f"try {', '.join(others)} or {last}" if others else f"try {last}"


def _device_kind() -> str:
  return printable(jax.local_devices()[0].device_kind)
