"""What a compiled program costs, read from its text: time, collectives, sums in bfloat16."""

import re
from collections import Counter
from typing import Any

from ahead.chips import Chip
from ahead.hlo import COLLECTIVES, NO_WORK, Computation, Instruction, Program, Step

from gfnet_jax.models.fourier import SCOPE

RULE_FACTOR = 1.5  # by which a kernel without an estimate counts above its floor
SUMS = ("reduce", "reduce-window", "reduce-scatter", "all-reduce", "all-reduce-start")


def estimate(program: Program, steps: list[Step], chip: Chip) -> dict[str, Any]:
  """The time of a TPU program by the compiler's own cycles.

  Asynchronous copies and collectives are not in it. Pallas kernels carry no cycles; they
  count as the larger of their bytes and their arithmetic at the chip's peak, times
  RULE_FACTOR.

  Returns:
    estimated_ms and filter_ms (None for a chip whose clock is not known), estimated_cycles,
    estimated_by_rule: count and ms of the kernels, contained in both times; not_estimated:
    count of other instructions without cycles and what they take at least, contained in
    neither: floor_ms, reading and writing the chip's memory once.
  """
  cycles, kernel_s, kernels, missing = Counter(), Counter(), 0, Counter()
  for one, computation, times in steps:
    of_filter = is_filter(program, one)
    found = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
    if 'custom_call_target="tpu_custom_call"' in one.rest:
      kernels += times
      kernel_s[of_filter] += times * kernel_seconds(one, computation, chip)
    elif found:
      cycles[of_filter] += times * int(found[1])
    elif should_be_estimated(one):
      size = one.memory_bytes + sum(computation[name].memory_bytes for name in one.operands)
      missing.update(count=times, bytes=times * size)

  def milliseconds(*parts: bool) -> float | None:
    if chip.clock is None:
      return None
    return 1e3 * sum(cycles[part] / chip.clock + kernel_s[part] for part in parts)

  return {
    "estimated_ms": milliseconds(True, False),
    "filter_ms": milliseconds(True),
    "estimated_cycles": cycles.total(),
    "estimated_by_rule": {"count": kernels, "ms": 1e3 * kernel_s.total()},
    "not_estimated": {
      "count": missing["count"],
      "floor_ms": 1e3 * missing["bytes"] / chip.bandwidth,
    },
  }


def is_filter(program: Program, instruction: Instruction) -> bool:
  """Whether an instruction belongs to the filter; a fusion of mixed origin, by its own name."""
  return SCOPE in re.split(r"\W+", program.op_name(instruction))


def should_be_estimated(instruction: Instruction) -> bool:
  """Whether an instruction takes time that is not one of collectives or asynchronous copies.

  Custom calls other than Pallas kernels only reserve or name memory.
  """
  opcode = instruction.opcode
  asynchronous = opcode.endswith(("-start", "-done", "-update"))
  return opcode not in {*NO_WORK, *COLLECTIVES, "custom-call"} and not asynchronous


def kernel_seconds(kernel: Instruction, computation: Computation, chip: Chip) -> float:
  """A kernel's floor times RULE_FACTOR.

  Bytes and FLOPs are those of its `cost_estimate`; without one, bytes are those of operands
  and result, and there is no arithmetic.
  """
  cost = re.search(r'"cost_estimate":\{([^}]*)\}', kernel.rest)
  stated = dict(re.findall(r'"(\w+)":"(\d+)"', cost[1])) if cost else {}
  size = int(stated.get("bytes_accessed", 0))
  size = size or kernel.bytes + sum(computation[name].bytes for name in kernel.operands)
  return RULE_FACTOR * max(size / chip.bandwidth, int(stated.get("flops", 0)) / chip.flops)


def collectives(program: Program, steps: list[Step]) -> dict[str, dict[str, Any]]:
  """What crosses between devices in a run: {kind: count, bytes of the results, by dtype too}."""
  found = {}
  for step in steps:
    for one, _ in program.parts(step.instruction, step.computation):
      if one.collective:
        entry = found.setdefault(one.collective, {"count": 0, "bytes": 0, "dtypes": {}})
        entry["count"] += step.times
        entry["bytes"] += step.times * one.bytes
        for dtype, size in one.arrays:
          entry["dtypes"][dtype] = entry["dtypes"].get(dtype, 0) + step.times * size
  return dict(sorted(found.items()))


def bf16_sums(program: Program, steps: list[Step]) -> int:
  """How many sums over an axis or over devices a run makes in bfloat16, in fusions as well."""
  return sum(
    step.times
    for step in steps
    for one, computation in program.parts(step.instruction, step.computation)
    if is_bf16_sum(program, one, computation)
  )


def is_bf16_sum(program: Program, one: Instruction, computation: Computation) -> bool:
  if one.opcode not in SUMS or "bf16" not in dict(one.arrays):
    return False
  (combined,) = one.attribute("to_apply")
  adds = any(part.root and part.opcode == "add" for part in program.computations[combined].values())
  # Compilers write a reshape as a sum over axes of size 1.
  shrinks = sum(computation[name].bytes for name in one.operands) > 2 * one.bytes
  return adds and (one.opcode != "reduce" or shrinks)
