"""Converts official PyTorch weights, and back: the command `gfnet-jax convert`."""

import sys

from gfnet_jax.command_line import run
from gfnet_jax.commands.convert import main

if __name__ == "__main__":
  sys.exit(run(main))
