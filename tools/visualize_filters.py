"""Draws the global filters of a model: the command `gfnet-jax filters`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project need not be installed

from gfnet_jax.command_line import run
from gfnet_jax.commands.filters import main

if __name__ == "__main__":
  sys.exit(run(main))
