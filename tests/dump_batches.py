"""Prints a checksum of every row of training batches, as read and as mixed on the devices.

python tests/dump_batches.py FOLDER PROCESS PROCESSES WORKERS FIRST STEPS PORT
"""

import hashlib
import json
import sys

import ml_collections
import numpy as np

from gfnet_jax.command_line import run

BATCH_SIZE = 24


def main(arguments: list[str]) -> None:
  import jax

  from configs.default import get_config
  from gfnet_jax import distributed
  from gfnet_jax.data.erasing_boxes import Erasing
  from gfnet_jax.data.pipeline import Reading, train_batches
  from gfnet_jax.data.samples import Share
  from gfnet_jax.data.sources.open import open_source
  from gfnet_jax.data.transforms import TrainTransform
  from gfnet_jax.sharding import make_mesh, split_batch, to_devices
  from gfnet_jax.training.classification import make_preparation

  folder, *numbers = arguments
  process, processes, workers, first, steps, port = map(int, numbers)
  if processes > 1:
    distributed.initialize(f"127.0.0.1:{port}", processes, process)
  config = get_config()
  config.mixing.group_size = 2  # divides the rows of every process: the same bits for all
  config.erasing.probability = 0.5
  data = ml_collections.ConfigDict(dict(source="folder", name=folder))
  batches = train_batches(
    open_source(data, "train"),
    TrainTransform(image_size=40),
    seed=1,
    share=Share(BATCH_SIZE, process, processes),
    first_batch=first,
    num_batches=steps,
    reading=Reading(threads=2, prefetch=2, workers=workers),
    repeats=3,
    erasing=Erasing(**config.erasing),
  )
  mesh = make_mesh()
  prepare = jax.jit(make_preparation(config), out_shardings=split_batch(mesh))
  with jax.set_mesh(mesh):
    for step, batch in enumerate(to_devices(batches, mesh), first):
      key = jax.random.fold_in(jax.random.key(1), step)
      print(json.dumps(row_sums([*batch.values(), *prepare(batch, key)])), flush=True)


def row_sums(arrays: list) -> list[str]:
  """A checksum of every row that this process holds, over all arrays."""
  shards = zip(*(array.addressable_shards for array in arrays), strict=True)
  rows = (
    row for parts in shards for row in zip(*(np.asarray(part.data) for part in parts), strict=True)
  )
  return [hashlib.sha256(b"".join(x.tobytes() for x in row)).hexdigest() for row in rows]


if __name__ == "__main__":
  sys.exit(run(main))
