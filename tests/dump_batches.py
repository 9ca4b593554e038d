"""Reads this process's share of training batches and prints a checksum of every row.

python tests/dump_batches.py FOLDER PROCESS PROCESSES WORKERS FIRST STEPS
"""

import hashlib
import json
import sys

import ml_collections

from gfnet_jax.command_line import run

BATCH_SIZE = 24


def main(arguments: list[str]) -> None:
  from gfnet_jax.data.erasing import Erasing
  from gfnet_jax.data.pipeline import Reading, Share, train_batches
  from gfnet_jax.data.sources import open_source
  from gfnet_jax.data.transforms import TrainTransform

  folder, *numbers = arguments
  process, processes, workers, first, steps = map(int, numbers)
  data = ml_collections.ConfigDict(dict(source="folder", name=folder))
  batches = train_batches(
    open_source(data, "train"),
    TrainTransform(image_size=40),
    seed=1,
    share=Share(BATCH_SIZE, process, processes),
    first_step=first,
    num_steps=steps,
    reading=Reading(threads=2, prefetch=2, workers=workers),
    repeats=3,
    erasing=Erasing(probability=0.5),
  )
  for batch in batches:
    keys = sorted(batch)
    rows = zip(*(batch[key] for key in keys), strict=True)
    sums = [hashlib.sha256(b"".join(x.tobytes() for x in row)).hexdigest() for row in rows]
    print(json.dumps(sums), flush=True)


if __name__ == "__main__":
  sys.exit(run(main))
