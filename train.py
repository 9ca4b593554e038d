"""Trains a Global Filter Network.

With no arguments, trains a small network on handwritten digits that need no download:

  python train.py

Any config file, with any of its fields overridden:

  python train.py --config configs/digits.py --workdir runs/wide --config.model.embed_dim=96

The work directory receives config.json, metrics.jsonl, performance.jsonl, TensorBoard
events and checkpoints. The same command again continues a run that was interrupted.
"""

import shlex
import sys
from pathlib import Path

from gfnet_jax.command_line import ArgumentParser, add_process_flags, read_config, run
from gfnet_jax.host_memory import keep_freed_memory


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog="train.py", description=__doc__)
  parser.add_argument(
    "--config",
    default="configs/digits.py",
    metavar="FILE[:ARGUMENT]",
    help="config file (default: %(default)s); --config.FIELD=VALUE overrides one of its fields",
  )
  parser.add_argument(
    "--workdir", type=Path, help="work directory (default: runs/ and the config's name)"
  )
  add_process_flags(parser)
  options, overrides = parser.parse_known_args(arguments)
  config = read_config(options.config, overrides)

  keep_freed_memory()
  # Importing jax and the rest takes a second that --help and typing errors need not wait for.
  from gfnet_jax.compilation_cache import enable_compilation_cache
  from gfnet_jax.training import distributed
  from gfnet_jax.training.console import say
  from gfnet_jax.training.loop import train

  enable_compilation_cache()
  distributed.initialize(options.coordinator, options.num_processes, options.process_id)
  workdir = options.workdir or Path("runs") / config.name
  if train(config, workdir):
    say(f"Done. Evaluate it again with: python eval.py --checkpoint {shlex.quote(str(workdir))}")


if __name__ == "__main__":
  sys.exit(run(main))
