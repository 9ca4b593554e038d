"""Evaluates on a whole data set, every image counted once."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from gfnet_jax.console import say
from gfnet_jax.data import imagenet
from gfnet_jax.data.pipeline import Reading, eval_batches
from gfnet_jax.data.samples import Share, check_form
from gfnet_jax.data.segmentation.transforms import MaskedEvalTransform
from gfnet_jax.data.sources.copies import copied
from gfnet_jax.data.sources.fingerprint import describe_images, fingerprint
from gfnet_jax.data.sources.imagenet_sets import set_named
from gfnet_jax.data.sources.open import open_source
from gfnet_jax.data.sources.recognise import recognise
from gfnet_jax.data.sources.records import Source
from gfnet_jax.data.transforms import EvalTransform
from gfnet_jax.distributed import together
from gfnet_jax.errors import UserError
from gfnet_jax.inference.attacks import Attack, make_attack
from gfnet_jax.inference.classification import CLASSIFICATION
from gfnet_jax.inference.match_classes import Matched, match_classes
from gfnet_jax.inference.parts import summarize_parts
from gfnet_jax.inference.saved_model import SavedModel, check_classifies, load_model
from gfnet_jax.inference.segmentation import SEGMENTATION
from gfnet_jax.inference.task import Task
from gfnet_jax.models import functional
from gfnet_jax.models.functional import Params
from gfnet_jax.models.precision import matmul_precision
from gfnet_jax.sharding import make_mesh, replicate, to_devices
from gfnet_jax.text import printable

DATA = dict(source="tfds", data_dir="", eval_split="validation", eval_batch_size=128, reading={})


def evaluate(
  saved: SavedModel | Path | str,
  data: str | Path | None = None,
  *,
  source: str | None = None,
  split: str | None = None,
  data_dir: str | None = None,
  batch_size: int | None = None,
  classes: str | None = None,
  attack: Attack | str | None = None,
  report: str | Path | None = None,
  on_batch: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
  """Evaluates a saved model on all images of a data set, on all devices.

  Args:
    saved: of `load_model`, or what it takes: a directory, a file or a variant's name.
    data: a folder of images (DIR/<class>/*, or DIR/val/<class>/*), the name of a TFDS
      data set or the directory that holds one, or a name in `IMAGENET_SETS`, such as imagenet_a;
      None for the data that it was trained with.
    source: kind of the data, a name of `sources.open.SOURCES`; recognised if None.
    split: of the data set; by default that of training, for a folder `val` if there is one.
    data_dir: directory of all data sets of TFDS and IMAGENET_SETS.
    batch_size: over all devices; rounded up to a multiple of their number.
    classes: for data that hold only some of ImageNet's classes: "all" asks the model which
      of its classes an image shows, "present" which of those that the data hold, as is usual
      of imagenet_a and imagenet_r; None for what is usual.
    attack: changes every image against the model before it is counted; "fgsm", "pgd" or what
      `make_attack` makes.
    report: directory for accuracy by class, confusion matrix and mistakes; see `write_report`.
    on_batch: called after every batch; what it raises ends the evaluation.

  Returns:
    What `inference.metrics` lists, METRICS or of pixels PIXEL_METRICS, such as top1 in percent and
    loss; images and images_per_second. For data that hold some classes only also their number,
    classes_present, and of those that were told apart, classes_compared; with an attack, what it
    was. Of imagenet_real also real, in percent, and real_images, those that count; of data in
    parts, such as imagenet_c, what `summarize_parts` returns.

  Raises:
    UserError: if the data cannot be opened or read, or its classes are not the model's.
  """
  saved = saved if isinstance(saved, SavedModel) else load_model(saved)
  attack = make_attack(attack) if isinstance(attack, str) else attack
  task = task_of(saved.config)
  if attack is not None:
    check_classifies(saved)
  given = dict(source=source, eval_split=split, data_dir=data_dir, eval_batch_size=batch_size)
  section = data_section(saved, name=data if data is None else str(data), **given)
  images = _open(section, saved, task)
  matched = match_classes(images, saved, section, classes)
  parts = getattr(images, "parts", {})
  judged = report is not None or bool(parts)
  results, step = _measure(saved, matched, section, attack, judged=judged, on_batch=on_batch)
  if report is not None:
    _report(task, Path(report), step, saved, matched)
  if parts:
    results |= summarize_parts(step.verdicts(), parts, set_named(section))
  return results | matched.counts | ({"attack": str(attack)} if attack else {})


def _measure(
  saved: SavedModel,
  matched: Matched,
  section: ml_collections.ConfigDict,
  attack: Attack | None,
  *,
  judged: bool,
  on_batch: Callable[[], None],
) -> tuple[dict[str, float | int], Callable]:
  """As `evaluate_params`, and its step: where `judged`, one that remembers what it measured."""
  task = task_of(saved.config)
  structure, params = functional.split(saved.model)
  mesh = make_mesh()
  make_step = task.make_judging_step if judged else task.make_step
  named = set_named(section)
  whole = {"whole": True} if named and named.cut_out else {}
  with jax.set_mesh(mesh), matmul_precision(saved.precision):
    step = make_step(structure, mesh, matched.outputs, **({"attack": attack} if attack else {}))
    results = evaluate_params(
      step,
      replicate(params, mesh),
      matched.source,
      task.make_transform({**saved.config, "image_size": saved.model.image_size}, **whole),
      task=task,
      batch_size=section.eval_batch_size,
      mesh=mesh,
      reading=Reading(**section.reading),
      on_batch=on_batch,
    )
  return results, step


def _open(section: ml_collections.ConfigDict, saved: SavedModel, task: Task) -> Source:
  images = open_source(section, section.eval_split)
  check_form(images, task.form)
  _warn_of_change(images, saved, section)
  return images


def _warn_of_change(images: Source, saved: SavedModel, section: ml_collections.ConfigDict) -> None:
  """Says if the images are not those that were held out of the training run's, but look so."""
  of_run = (saved.run_config or {}).get("data", {})
  if of_run.get("source") == "photos" and (section.source, section.eval_split) == ("folder", ""):
    with contextlib.suppress(OSError):  # the folder of the training is elsewhere now
      if Path(of_run["name"]).expanduser().samefile(section.name):
        say(
          f"warning: the model was trained on images of {printable(section.name)}; leave out "
          "--data to evaluate it on those that were held out"
        )
  same = all(section[name] == of_run.get(name) for name in ("source", "name", "eval_split"))
  if not (same and saved.fingerprints):
    return
  if change := describe_images(saved.fingerprints["eval"], fingerprint(images)):
    trained = "; images that were trained on may be among them" * (section.source == "photos")
    say(
      f"warning: {printable(section.name)} has changed since the training, now {change}{trained}; "
      "compare the result with no other"
    )


def _report(
  task: Task, directory: Path, step: Callable, saved: SavedModel, matched: Matched
) -> None:
  """Only one process writes, and the others learn of its errors."""
  known = None if matched.outputs else saved.class_names
  names = [imagenet.names().get(name, name) for name in known or matched.source.class_names]
  write = functools.partial(task.write_report, directory, step, matched.source, saved, names)
  together(write if jax.process_index() == 0 else lambda: None)


def data_section(saved: SavedModel, **changes) -> ml_collections.ConfigDict:
  """The `data` section of a config to evaluate a saved model with.

  Args:
    saved: of `load_model`; its training run's section is the default.
    **changes: fields to replace, where not None; if a name is given, the kind of the data
      and the split are recognised from it unless they are given as well.

  Raises:
    UserError: if no data set is named, or a batch has no image.
  """
  section = DATA | (saved.run_config or {}).get("data", {})
  given = {name: value for name, value in changes.items() if value is not None}
  if "name" in given:
    name, data_dir = copied(given["name"], given.get("data_dir", section["data_dir"]))
    given |= {"name": name, "data_dir": data_dir}
    found = recognise(name, usual=section["source"], data_dir=data_dir)
    if given.setdefault("source", found.source) == found.source and found.split is not None:
      given.setdefault("eval_split", found.split)
  section |= given
  if "name" not in section:
    raise UserError("the weights come from elsewhere and name no data set; give one with --data")
  if section["eval_batch_size"] < 1:
    raise UserError(f"the batch size is {section['eval_batch_size']}, expected at least 1")
  return ml_collections.ConfigDict(section)


def evaluate_params(
  eval_step: Callable,
  params: Params,
  source: Source,
  transform: EvalTransform | MaskedEvalTransform,
  *,
  task: Task | None = None,
  batch_size: int,
  mesh: Mesh,
  reading: Reading,
  on_batch: Callable[[], None] = lambda: None,
) -> dict[str, float | int]:
  """Evaluates parameters on all images of a source, with a progress bar.

  Args:
    eval_step: of `Task.make_step`.
    params: by dotted name.
    source: the images.
    transform: gives the images that the model takes.
    task: of the model; None for CLASSIFICATION.
    batch_size: of all devices together; rounded up to a multiple of their number.
    mesh: of `make_mesh`.
    reading: how to read.
    on_batch: called after every batch; what it raises ends the evaluation.

  Returns:
    As `evaluate`; images_per_second counts from when the first batch has been read and the
    step is compiled, and stands still while it is compiled for images of another size.
  """
  task = task or CLASSIFICATION
  batch_size = -(-batch_size // mesh.size) * mesh.size
  share = Share(batch_size, jax.process_index(), jax.process_count())
  batches = eval_batches(source, transform, share=share, reading=reading, form=task.form)
  results, start, compiled = [], None, set()
  with contextlib.closing(batches):
    for batch in _progress(to_devices(batches, mesh), source, batch_size):
      shapes = tuple(np.shape(array) for array in jax.tree.leaves(batch))
      if shapes not in compiled:  # neither the start of the workers nor compiling is in the rate
        jax.block_until_ready(results)
        before = time.monotonic()
        eval_step.lower(params, batch).compile()
        compiled.add(shapes)
        now = time.monotonic()
        start = now if start is None else start + now - before
      results.append(eval_step(params, batch))
      on_batch()
  summary = task.summarize(jax.device_get(results))
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


def task_of(model: Mapping[str, Any]) -> Task:
  """What the model that `create_model` makes of these arguments is for."""
  return SEGMENTATION if model.get("decoder") else CLASSIFICATION
