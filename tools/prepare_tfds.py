"""Writes image files as a TFDS data set: the command `gfnet-jax prepare`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project need not be installed

from gfnet_jax.command_line import run
from gfnet_jax.commands.prepare import main

if __name__ == "__main__":
  sys.exit(run(main))
