"""Evaluates a trained or converted model: the command `gfnet-jax eval`."""

import sys

from gfnet_jax.command_line import run
from gfnet_jax.commands.eval import main

if __name__ == "__main__":
  sys.exit(run(main))
