"""Compiles a program for TPUs or GPUs that are not there, and says what it would cost on them.

  python tools/compile_ahead.py --topology v5e:2x4 --config configs/imagenet.py:gfnet-h-b

answers whether training fits the memory of eight TPU v5e, and if not, what to change;
fields of the config are overridden as for train.py. The compilers for accelerators are in
requirements-ahead.txt; no accelerator is used, nor looked for. Times are the compiler's
estimates (estimated_ms) or what the memory alone takes (floor_ms), not measurements:
docs/speed.md, "Compiled ahead", says how to read them. The exit code is 2 if the program does not
fit or does not compile.
"""

import importlib.metadata
import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project need not be installed

from ahead import chips
from token_grid import token_grid

from gfnet_jax.command_line import ArgumentParser, run
from gfnet_jax.errors import UserError
from gfnet_jax.files import make_directory_of, to_json, write_atomically

PROGRAMS = ("train", "eval", "filter", "filter-gradient")


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog="tools/compile_ahead.py", description=__doc__)
  parser.add_argument(
    "--topology",
    required=True,
    metavar="CHIP:SHAPE",
    help=f"such as v5e:2x4 or h100:8; chips are {', '.join(chips.CHIPS)}",
  )
  parser.add_argument(
    "--config",
    default="configs/imagenet.py:gfnet-xs",
    metavar="FILE[:ARGUMENT]",
    help="of the run, by default %(default)s; any field can be overridden, such as "
    "--config.data.batch_size=512",
  )
  parser.add_argument(
    "--program",
    default="train",
    choices=PROGRAMS,
    help="the training step (default), the evaluation step, or the filter alone, forward or with "
    "its gradients",
  )
  parser.add_argument(
    "--grid",
    type=token_grid,
    metavar="HxWxC",
    help="tokens and channels of the filter, if it is alone",
  )
  parser.add_argument("--output", type=Path, help="write the result to this file as JSON")
  parser.add_argument("--text", type=Path, help="write the compiled program to this file")
  options, overrides = parser.parse_known_args(arguments)
  if bool(options.grid) != options.program.startswith("filter"):
    parser.error("--grid goes with --program=filter and --program=filter-gradient")
  chip, sides = chips.parse_topology(options.topology)
  chips.check_compiler(chip)
  from gfnet_jax.config_files import read_config

  config = read_config(options.config, overrides)
  for path in filter(None, (options.output, options.text)):  # before the work, not after
    make_directory_of(path)
  chips.prepare_environment()
  from ahead.report import compile_and_read, table  # jax only now

  from gfnet_jax.sharding import make_mesh

  mesh = make_mesh(chips.chips_of(options.topology, chip, sides))
  found, text = compile_and_read(options.program, config, chip, mesh, options.grid)
  result = {
    "command": shlex.join(["tools/compile_ahead.py", *arguments]),
    **dict(topology=options.topology, chip=chip.name, chips=mesh.size),
    **dict(program=options.program, grid=options.grid, model=config.model.name),
    **dict(
      precision=config.precision, images_per_chip=images(config, options.program) // mesh.size
    ),
    **dict(jax=importlib.metadata.version("jax")),
    **found,
  }
  if options.output:
    write_atomically(options.output, to_json(result, indent=2) + "\n")
  if options.text:
    write_atomically(options.text, text)
  print(headline(result))
  for name, value in table(found):
    print(f"  {name:24}{value}")
  if not result["fits"]:
    raise UserError(refusal(result))


def images(config, program: str) -> int:
  """How many the program takes at once, on all chips together."""
  return config.data.eval_batch_size if program == "eval" else config.data.batch_size


def headline(result: dict[str, Any]) -> str:
  what = "x".join(map(str, result["grid"])) if result["grid"] else result["model"]
  return (
    f"{what}, {result['program']}, precision {result['precision']}, {result['images_per_chip']} "
    f"images on each of {result['chips']} {result['chip']}:"
  )


def refusal(result: dict[str, Any]) -> str:
  """Why it cannot run there and what to do, in a line."""
  if result["compiles"]:
    found = (
      f"{result['program']} needs {result['needed_bytes'] / 1e9:.3g} GB on every "
      f"{result['chip']}, which has {result['chip_bytes'] / 1e9:.3g} GB"
    )
    if result["usable_bytes"] < result["chip_bytes"]:
      found += f", {result['usable_bytes'] / 1e9:.3g} GB of it for jax (by default three quarters)"
  elif "RESOURCE_EXHAUSTED" in result["reason"]:
    found = f"the memory of a {result['chip']} is too small ({result['reason']})"
  else:
    return (
      f"the compiler refuses the program ({result['reason']}); try another form of it, such as "
      "--config.model.scan, or other options of the compiler in XLA_FLAGS"
    )
  advice = " or ".join(result["advice"]) or "a smaller batch, more chips or chips with more memory"
  return f"{found}; try {advice}"


if __name__ == "__main__":
  sys.exit(run(main))
