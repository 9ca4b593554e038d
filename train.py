"""Trains a Global Filter Network: the command `gfnet-jax train`."""

import sys

from gfnet_jax.command_line import run
from gfnet_jax.commands.train import main

if __name__ == "__main__":
  sys.exit(run(main))
