"""Top-1, top-5 and loss over a whole data set, every image counted once."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import ml_collections
from jax.sharding import Mesh
from tqdm import tqdm

from gfnet_jax.data.pipeline import Reading, Share, eval_batches
from gfnet_jax.data.sources import Source, check_classes, check_same_classes, open_source
from gfnet_jax.data.transforms import EvalTransform
from gfnet_jax.errors import UserError
from gfnet_jax.models.functional import Params, split
from gfnet_jax.training.checkpoint import SavedModel
from gfnet_jax.training.metrics import summarize
from gfnet_jax.training.precision import matmul_precision
from gfnet_jax.training.sharding import make_mesh, replicate, to_devices
from gfnet_jax.training.step import make_eval_step


def evaluate(
  eval_step: Callable,
  params: Params,
  source: Source,
  transform: EvalTransform,
  *,
  batch_size: int,
  mesh: Mesh,
  reading: Reading,
  on_batch: Callable[[], None] = lambda: None,
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
    on_batch: called after every batch; what it raises ends the evaluation.

  Returns:
    top1 and top5 in percent, loss, images, images_per_second.
  """
  batch_size = -(-batch_size // mesh.size) * mesh.size
  share = Share(batch_size, jax.process_index(), jax.process_count())
  batches = eval_batches(source, transform, share=share, reading=reading)
  start = time.monotonic()
  results = []
  with contextlib.closing(batches):
    for batch in _progress(to_devices(batches, mesh), source, batch_size):
      results.append(eval_step(params, batch))
      on_batch()
  summary = summarize(jax.device_get(results))
  return {**summary, "images_per_second": len(source) / (time.monotonic() - start)}


def eval_data(saved: SavedModel, **changes) -> ml_collections.ConfigDict:
  """The `data` section to evaluate a saved model with.

  A named directory that is no TFDS data set is taken for a folder of images, and its
  directory `val`, if there is one, for the split.

  Args:
    saved: of `load_model`; its training run's section is the default.
    **changes: fields to replace, where not None.

  Raises:
    UserError: if no data set is named.
  """
  data = dict(source="tfds", data_dir="", eval_split="validation", eval_batch_size=128, reading={})
  data |= (saved.run_config or {}).get("data", {})
  given = {name: value for name, value in changes.items() if value is not None}
  folder = Path(given.get("name", ""))
  if "name" in given and folder.is_dir() and not (folder / "dataset_info.json").is_file():
    split = "val" if (folder / "val").is_dir() else ""
    given = {"source": "folder", "eval_split": split} | given
  elif "name" in given and data["source"] == "folder":
    given = {"source": "tfds"} | given
  data |= given
  if "name" not in data:
    raise UserError("the weights come from elsewhere and name no data set; give one with --data")
  return ml_collections.ConfigDict(data)


def evaluate_model(saved: SavedModel, data: ml_collections.ConfigDict) -> dict[str, float | int]:
  """Evaluates a saved model on the evaluation split of a data set.

  Args:
    saved: of `load_model`.
    data: the `data` section of a config.

  Returns:
    As `evaluate`.

  Raises:
    UserError: if the data cannot be opened or its classes are not the model's.
  """
  source = open_source(data, data.eval_split)
  check_classes(source, saved.config["num_classes"])
  if data.get("source") == "folder" and saved.class_names:
    check_same_classes(source.class_names, saved.class_names, data.name)
  if data.eval_batch_size < 1:
    raise UserError(f"the batch size is {data.eval_batch_size}, expected at least 1")
  structure, params = split(saved.model)
  mesh = make_mesh()
  with jax.set_mesh(mesh), matmul_precision(saved.precision):
    return evaluate(
      make_eval_step(structure, mesh),
      replicate(params, mesh),
      source,
      EvalTransform(saved.model.image_size),
      batch_size=data.eval_batch_size,
      mesh=mesh,
      reading=Reading(**data.reading),
    )


def _progress(batches: Iterator, source: Source, batch_size: int) -> Iterator:
  """The batches, counted in images on a bar that shows after two seconds."""
  hidden = jax.process_index() != 0 or None  # None: hidden unless on a terminal
  with tqdm(
    total=len(source), desc="evaluate", unit="img", leave=False, delay=2, disable=hidden
  ) as bar:
    for batch in batches:
      yield batch
      bar.update(min(batch_size, bar.total - bar.n))
