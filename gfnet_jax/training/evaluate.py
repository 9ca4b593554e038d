"""Top-1, top-5 and loss over a whole data set, every image counted once."""

import time
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from gfnet_jax.data.pipeline import Reading, Share, eval_batches
from gfnet_jax.data.sources import Source
from gfnet_jax.data.transforms import EvalTransform
from gfnet_jax.models.functional import Params
from gfnet_jax.training.metrics import summarize
from gfnet_jax.training.sharding import to_devices


def evaluate(
  eval_step: Callable,
  params: Params,
  source: Source,
  transform: EvalTransform,
  *,
  batch_size: int,
  mesh: Mesh,
  reading: Reading,
) -> dict[str, float | int]:
  """Evaluates on all images of a source, with a progress bar.

  Args:
    eval_step: of `make_eval_step`.
    params: by dotted name.
    source: the images.
    transform: gives the images that the model takes.
    batch_size: of all devices together; rounded up to a multiple of their number.
    mesh: of `make_mesh`.
    reading: how to read.

  Returns:
    top1 and top5 in percent, loss, images, images_per_second.
  """
  batch_size = -(-batch_size // mesh.size) * mesh.size
  share = Share(batch_size, jax.process_index(), jax.process_count())
  batches = eval_batches(source, transform, share=share, reading=reading)
  start = time.monotonic()
  results = [
    eval_step(params, batch) for batch in _progress(to_devices(batches, mesh), source, batch_size)
  ]
  summary = summarize(jax.device_get(results))
  return {**summary, "images_per_second": len(source) / (time.monotonic() - start)}


def _progress(batches: Iterator, source: Source, batch_size: int) -> Iterator:
  """The batches, counted in images on a bar that shows after two seconds."""
  hidden = jax.process_index() != 0 or None  # None: hidden unless on a terminal
  with tqdm(
    total=len(source), desc="evaluate", unit="img", leave=False, delay=2, disable=hidden
  ) as bar:
    for batch in batches:
      yield batch
      bar.update(min(batch_size, bar.total - bar.n))
