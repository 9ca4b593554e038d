"""Measures; every benchmark prints a table and can write JSON.

  python tools/benchmark.py input --output input.json

`python tools/benchmark.py WHAT --help` says what is measured and how.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project need not be installed

from gfnet_jax import startup
from gfnet_jax.command_line import ArgumentParser, run


def main(arguments: list[str]) -> None:
  startup.keep_freed_memory()  # as the scripts do
  from benchmarks import _measure  # after it: this imports jax

  parser = ArgumentParser(prog="tools/benchmark.py", description=__doc__)
  benchmarks = parser.add_subparsers(required=True, metavar="WHAT")
  # Every module of tools/benchmarks has add_arguments(parser) and run(options).
  for path in sorted((Path(__file__).parent / "benchmarks").glob("[!_]*.py")):
    module = importlib.import_module(f"benchmarks.{path.stem}")
    title = module.__doc__.partition("\n")[0]
    benchmark = benchmarks.add_parser(path.stem, help=title, description=module.__doc__)
    benchmark.set_defaults(run=module.run, timed=True)  # timed=False in one that takes no times
    benchmark.add_argument("--output", type=Path, help="write the result to this file as JSON")
    module.add_arguments(benchmark)
  options, overrides = parser.parse_known_args(arguments)
  if overrides and "overrides" not in options:
    parser.error(f"unexpected argument {overrides[0]!r}")
  options.overrides = overrides  # of a config, for the benchmarks that read one
  if options.timed:
    _measure.warn_of_load(_measure.LOAD_BEFORE, "before the benchmark")
  options.run(options)


if __name__ == "__main__":
  sys.exit(run(main))
