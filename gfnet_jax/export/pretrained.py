"""Models as the Hugging Face hub has them: to a directory, and from one or from the hub."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gfnet_jax.buckets import BucketPath, as_directory
from gfnet_jax.checkpoints.model import check_description, model_metadata
from gfnet_jax.errors import UserError
from gfnet_jax.export.facts import describe
from gfnet_jax.export.formats import export_model
from gfnet_jax.export.model_card import model_card
from gfnet_jax.inference.saved_model import SavedModel, load_pretrained
from gfnet_jax.text import printable
from gfnet_jax.weights.hub import fetch_from_hub, is_name, parse_address
from gfnet_jax.weights.pretrained import write_pretrained

PREPROCESSING = ("image_size", "resize_to", "mean", "std")


def save_pretrained(saved: SavedModel, directory: Path | str) -> None:
  """Saves a model as the Hugging Face hub has it, for `from_pretrained` and `load_model`.

  The directory holds the weights as model.safetensors, by their official names where the mixer is
  the global filter; config.json, with what describes the model, its classes and how images are
  prepared, and a sum of the weights; and README.md, a model card with what was measured. Of the
  training run they say neither the config nor where its data are.

  Args:
    saved: the model, of `load_model`. Evaluations of your own are
      `dataclasses.replace(saved, measured={"name of the data": gfnet_jax.evaluate(saved, data)})`.
    directory: a new one.

  Raises:
    UserError: as `export_model`, if config or class names are not those of the model, or if
      `measured` is anything but evaluations by name.
  """
  export_model(saved, directory, "pretrained")


def from_pretrained(
  source: Path | str, *, revision: str | None = None, precision: str | None = None
) -> SavedModel:
  """Loads a model of `save_pretrained`, from a directory or from the Hugging Face hub.

  The weights are compared with their sum, and are, bit for bit, those that were saved, unless the
  precision is another. The hub needs huggingface_hub, and is asked only if there is no such
  directory; see `fetch_from_hub`.

  Args:
    source: the directory, or OWNER/NAME of a model on the hub; hf://OWNER/NAME means the hub
      alone, perhaps with @REVISION.
    revision: of a model on the hub: a branch, a tag or a commit; None for the newest.
    precision: see `compute_dtype`; None for that of the saved model.

  Raises:
    UserError: as `read_pretrained` and `fetch_from_hub`.
  """
  if address := parse_address(source):
    name, named = address
    if revision is not None and named is not None:
      raise UserError(
        f"revision is {printable(repr(revision))}, but {printable(source)} names one, too; leave "
        "one of them out"
      )
    return load_pretrained(fetch_from_hub(name, revision or named), precision)
  path = as_directory(source)
  if isinstance(path, BucketPath):
    raise UserError(f"{path} is in a store; copy the directory to a disk, and name that")
  if path.exists() or not is_name(str(source)):
    if revision is not None:
      raise UserError(
        f"revision is {printable(repr(revision))}, but {path} is not a model of the hub; leave it "
        "out"
      )
    return load_pretrained(path, precision)
  return load_pretrained(fetch_from_hub(str(source), revision), precision)


def check(path: Path) -> None:
  """Any new directory will do."""


def write(saved: SavedModel, path: Path) -> dict[str, Any]:
  """Writes a directory, see `save_pretrained`."""
  check_description(saved.model, saved.config, saved.class_names)
  saved = dataclasses.replace(saved, measured=_numbers(saved.measured))
  facts = describe(saved, "float32")
  metadata = {
    **model_metadata(saved.config, saved.class_names),
    "step": saved.step,
    "precision": saved.precision,
    "measured": saved.measured,
    "preprocessing": {name: facts[name] for name in PREPROCESSING},
  }
  return {"bytes": write_pretrained(path, saved.model, metadata, model_card(saved))}


def _numbers(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
  """Evaluations without what is no finite number, such as an attack, or a list of parts.

  Raises:
    UserError: if they are not evaluations by the name of their data.
  """
  if not isinstance(measured, Mapping) or not all(
    isinstance(data, str) and isinstance(values, Mapping) for data, values in measured.items()
  ):
    raise UserError(
      f"measured is {printable(repr(measured), 80)}, expected evaluations by the name of their "
      'data, {"digits, test": gfnet_jax.evaluate(saved)} for example'
    )
  return {
    data: {
      name: x
      for name, x in values.items()
      if isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
    }
    for data, values in measured.items()
  }
