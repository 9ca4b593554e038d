"""What compiling a program ahead shows, as one dictionary and as a table."""

import time
from typing import Any

import jax
from ahead import costs
from ahead.chips import Chip
from ahead.hlo import Program
from ahead.programs import lower
from ahead.traffic import traffic
from jax.sharding import Mesh

from gfnet_jax.text import printable
from gfnet_jax.training.memory import advise, read_plan


def compile_and_read(
  which: str, config, chip: Chip, mesh: Mesh, grid: tuple[int, int, int] | None
) -> tuple[dict[str, Any], str]:
  """Compiles a program for chips, and returns what is found and the optimised text.

  Args:
    which: a name of `programs.lower`.
    config: of `read_config`.
    chip: what the mesh consists of.
    mesh: of `make_mesh`, over the chips.
    grid: of the filter, if it is alone.

  Returns:
    The result, in bytes, milliseconds and seconds, all for one chip and one run of the
    program; and the text, "" if the compiler refuses the program.

  Raises:
    UserError: for a config that cannot work.
  """
  lowered = lower(which, config, mesh, grid)
  result = {"compiles": False, "reason": None, "fits": False}
  result |= {"chip_bytes": chip.memory, "usable_bytes": chip.usable}
  start = time.perf_counter()
  try:
    compiled, result["compiler_options"] = compile_for(chip, lowered)
  except jax.errors.JaxRuntimeError as error:
    # XLA says in many lines which buffers were the largest.
    result["reason"] = printable(str(error).partition("\n")[0], limit=400)
    result["advice"] = []
    if which == "train" and result["reason"].startswith("RESOURCE_EXHAUSTED"):
      result["advice"] = advise(config, mesh.size)
    return result, ""
  result |= {"compiles": True, "compile_s": time.perf_counter() - start}
  result |= memory(compiled, chip)
  result["advice"] = []
  if which == "train" and not result["fits"]:
    result["advice"] = advise(config, mesh.size, read_plan(compiled).excess(chip.usable))
  text = compiled.as_text()
  return result | read(text, chip), text


def compile_for(
  chip: Chip, lowered: jax.stages.Lowered
) -> tuple[jax.stages.Compiled, dict[str, Any]]:
  """The compiled program, and the options of the compiler that it took.

  With a GPU, XLA tries ways to multiply and passes over those that do not compile. Without
  one it takes the first, and gives up where that is one of Triton's that cannot be tiled.
  """
  try:
    return lowered.compile(), {}
  except jax.errors.JaxRuntimeError as error:
    if not chip.description or "Couldn't find output tile sizes" not in str(error):
      raise
  options = {"xla_gpu_enable_triton_gemm": False}
  return lowered.compile(compiler_options=options), options


def memory(compiled: jax.stages.Compiled, chip: Chip) -> dict[str, Any]:
  """What the compiler plans to hold on a chip, and whether it has room for that."""
  plan, needed = compiled.memory_analysis(), sum(read_plan(compiled))
  return {
    "argument_bytes": plan.argument_size_in_bytes,
    "output_bytes": plan.output_size_in_bytes,
    "aliased_bytes": plan.alias_size_in_bytes,  # arguments that become results
    "temporary_bytes": plan.temp_size_in_bytes,
    "needed_bytes": needed,
    "fits": needed <= chip.usable,
  }


def read(text: str, chip: Chip) -> dict[str, Any]:
  """What the optimised text says."""
  program = Program(text)
  steps = program.steps()
  result = {
    "collectives": costs.collectives(program, steps),
    "bf16_sums": costs.bf16_sums(program, steps),
    "unknown_loops": program.unknown_loops,
  }
  if not chip.description:
    return result | costs.estimate(program, steps, chip)
  size = traffic(program, steps)
  return result | {"bytes_accessed": size, "floor_ms": 1e3 * size / chip.bandwidth}


def table(result: dict[str, Any]) -> list[tuple[str, str]]:
  """The result in lines of a name and a text."""
  if not result["compiles"]:
    return [("compiles", f"no: {result['reason']}")]
  rows = [
    ("compiles", f"yes, in {result['compile_s']:.0f} s{with_options(result['compiler_options'])}"),
    (
      "memory",
      f"{gigabytes(result['needed_bytes'])} of {gigabytes(result['usable_bytes'])}, "
      f"{gigabytes(result['temporary_bytes'])} of it temporary: "
      f"{'fits' if result['fits'] else 'does not fit'}",
    ),
  ]
  if "floor_ms" in result:
    rows.append(("bytes read and written", gigabytes(result["bytes_accessed"])))
    rows.append(("floor by bandwidth", f"{result['floor_ms']:.3g} ms, not a time"))
  else:
    rows += estimates(result)
  crossing = [
    f"{kind} {entry['count']} times, {entry['bytes'] / 1e6:.3g} MB ({', '.join(entry['dtypes'])})"
    for kind, entry in result["collectives"].items()
  ]
  rows += [
    ("collectives", "; ".join(crossing) or "none"),
    ("sums in bfloat16", str(result["bf16_sums"])),
  ]
  if result["unknown_loops"]:
    rows.append(("loops of unknown length", f"{result['unknown_loops']}, each counted once"))
  return rows


def with_options(options: dict[str, Any]) -> str:
  return "".join(f", with {name}={value}" for name, value in options.items())


def estimates(result: dict[str, Any]) -> list[tuple[str, str]]:
  """The lines of a TPU's times."""
  total, part, rule = (result[key] for key in ("estimated_ms", "filter_ms", "estimated_by_rule"))
  if total is None:
    cycles = result["estimated_cycles"]
    return [("estimated", f"{cycles} cycles; no clock of this chip is known to make it a time")]
  rows = [
    ("estimated by compiler", f"{total:.4g} ms, collectives and asynchronous copies excepted"),
    ("filter in it", f"{part:.4g} ms, {part / total:.1%}" if total else "0 ms"),
  ]
  if rule["count"]:
    rows.append(("kernels in it, by rule", f"{rule['count']}, {rule['ms']:.4g} ms"))
  missing = result["not_estimated"]
  if missing["count"]:
    count, floor = missing["count"], missing["floor_ms"]
    rows.append(("besides, not estimated", f"{count} instructions, {floor:.3g} ms at least"))
  return rows


def gigabytes(size: int) -> str:
  return f"{size / 1e9:.3g} GB"
