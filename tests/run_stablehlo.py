"""Runs programs of StableHLO as a user would who does not have this project.

  python run_stablehlo.py DIRECTORY BATCH ...

For every NAME.stablehlo and the images in NAME.npy, NAME.logits.npz holds the logits of each batch
size, of the images again and again.
"""

import sys
from pathlib import Path


def main(directory: str, *batches: str) -> None:
  sys.modules["gfnet_jax"] = sys.modules["flax"] = None  # to import them fails
  import jax
  import numpy as np
  from jax import export

  for path in Path(directory).glob("*.stablehlo"):
    program = jax.jit(export.deserialize(path.read_bytes()).call)
    images = np.load(path.with_suffix(".npy"))
    shapes = {batch: (int(batch), *images.shape[1:]) for batch in batches}
    logits = {batch: program(np.resize(images, shape)) for batch, shape in shapes.items()}
    np.savez(path.with_suffix(".logits.npz"), **logits)


if __name__ == "__main__":
  main(*sys.argv[1:])
