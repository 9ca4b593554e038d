"""Directories as the Hugging Face hub has them: config.json, model.safetensors, README.md.

The tensors have their official names where there are any, which is with the global filter; else
ours, as in a model whose blocks are not stacked. config.json follows the schema of a checkpoint's
metadata, with what a checkpoint has elsewhere: the precision, and a sum of the weights.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gfnet_jax.checkpoints.checksums import LARGEST_TEXT, parse_json
from gfnet_jax.checkpoints.finding import list_steps
from gfnet_jax.checkpoints.metadata import FIELDS, check_metadata
from gfnet_jax.checkpoints.model import build_model, check_class_names
from gfnet_jax.errors import UserError
from gfnet_jax.files import new_directory, to_json
from gfnet_jax.models.base import Network
from gfnet_jax.models.fit import describe_misfits
from gfnet_jax.models.functional import split, update
from gfnet_jax.models.image_size import as_height_width
from gfnet_jax.models.precision import PRECISIONS, compute_dtype, parameter_dtype
from gfnet_jax.models.stage import separate_blocks, stack_blocks
from gfnet_jax.text import printable
from gfnet_jax.weights.files import read_state_dict, write_state_dict
from gfnet_jax.weights.state_dict import (
  OFFICIAL_MIXER,
  load_torch_state_dict,
  recognise,
  to_torch_state_dict,
)

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
MODEL_TYPE = "gfnet"
PICKLES = ("pytorch_model.bin", "*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")


def holds_pretrained(directory: Path) -> bool:
  """Whether a directory is meant to be one of these: the weights tell, in any format.

  One that holds checkpoints is not, though somebody may have put exported weights there.
  """
  weights = (WEIGHTS, f"{WEIGHTS}.index.json", PICKLES[0])
  return any((directory / name).is_file() for name in weights) and not (
    list_steps(directory / "checkpoints") or list_steps(directory)
  )


def write_pretrained(
  directory: Path, model: Network, metadata: Mapping[str, Any], card: str
) -> int:
  """Writes a model that `read_pretrained` reads, or nothing.

  Args:
    directory: a new one, in a directory that is there.
    model: whose parameters are written.
    metadata: for config.json; "precision", and what `check_metadata` asks for.
    card: the text of README.md.

  Returns:
    The bytes of all files.

  Raises:
    UserError: if a file cannot be written.
  """
  tensors = _tensors(model)
  with new_directory(directory) as new:
    write_state_dict(new / WEIGHTS, tensors)
    config = {"model_type": MODEL_TYPE, **metadata, "sha256": {WEIGHTS: _sha256(new)}}
    (new / CARD).write_text(card, "utf-8")
    (new / CONFIG).write_text(to_json(config, indent=2) + "\n", "utf-8")
  return sum(path.stat().st_size for path in directory.iterdir())


def read_pretrained(directory: Path, precision: str | None = None) -> tuple[Network, dict]:
  """Reads a model from a directory of `write_pretrained`, and verifies its weights.

  Only JSON and safetensors are read: no pickle, though ours would not be run.

  Args:
    directory: which.
    precision: see `compute_dtype`; None for the one in config.json.

  Returns:
    The model, and the metadata; their "precision" is that of the model's dtype.

  Raises:
    UserError: if a file is missing, damaged or of another kind, or the two do not go together.
  """
  metadata = read_config(directory)
  _check_weights(directory, metadata["sha256"])
  precision = precision or metadata["precision"]
  dtype = compute_dtype(precision)
  path = directory / WEIGHTS
  # What the sum vouches for may be NaN: it was so when it was saved.
  weights = read_state_dict(path, allow_nan=True, dtype=parameter_dtype(precision))
  try:
    model = build_model(metadata["model"], weights, dtype)
    check_class_names(metadata["class_names"], model)
    _fill(model, weights)
  except UserError as error:
    raise UserError(
      f"{directory / CONFIG} describes another model than {WEIGHTS} holds: {error}"
    ) from error
  return model, metadata | {"precision": precision}


def _tensors(model: Network) -> dict[str, np.ndarray]:
  if model.mixer == OFFICIAL_MIXER:
    return to_torch_state_dict(model)
  return {name: np.asarray(x) for name, x in separate_blocks(split(model)[1]).items()}


def _fill(model: Network, weights: Mapping[str, np.ndarray]) -> None:
  """Fills an abstract model with what `_tensors` made of one, nothing resized."""
  if model.mixer == OFFICIAL_MIXER:
    load_torch_state_dict(model, weights)
    found = as_height_width(recognise(weights, "of any name")["image_size"])
    if found != model.image_size:
      raise UserError(f"image_size is {model.image_size}, the weights are for {found}")
    return
  _, params = split(model)
  expected = {name: x.shape for name, x in jax.eval_shape(separate_blocks, params).items()}
  if misfits := describe_misfits(weights, expected):
    raise UserError(misfits)
  stacked = stack_blocks(weights, params)
  update(model, {name: jnp.array(x, model.dtype, copy=True) for name, x in stacked.items()})


def read_config(directory: Path) -> dict:
  """What config.json says, as far as it can be told without the weights.

  Raises:
    UserError: if it is missing, or none of ours.
  """
  path = directory / CONFIG
  expected = "a directory of gfnet_jax.save_pretrained (load_model takes other models, too)"
  try:
    with path.open("rb") as file:
      text = file.read(LARGEST_TEXT + 1)
    if len(text) > LARGEST_TEXT:
      raise ValueError(f"more than {LARGEST_TEXT} bytes")
    config = parse_json(text)
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
      found = config.get("model_type") if isinstance(config, dict) else config
      raise ValueError(f"model_type is {printable(repr(found), 80)}, expected {MODEL_TYPE!r}")
    check_metadata(config)
    for name, kind in (("model", dict), ("precision", str), ("measured", dict), ("sha256", dict)):
      if not isinstance(config.get(name), kind):
        raise ValueError(f"{name} is missing or of another kind")
    if config["precision"] not in PRECISIONS:
      raise ValueError(f"precision is {printable(repr(config['precision']), 80)}")
    if not all(map(FIELDS["metrics"].holds, config["measured"].values())):
      raise ValueError("measured holds what is not an evaluation")
  except OSError as error:
    raise UserError(f"cannot read {path} ({error.strerror}); expected {expected}") from error
  except ValueError as error:
    raise UserError(
      f"{path} cannot be used ({printable(error)}); get it again, expected {expected}"
    ) from error
  return config


def _check_weights(directory: Path, sums: Mapping[str, Any]) -> None:
  """Raises UserError unless the weights are safetensors, and have the sum."""
  path = directory / WEIGHTS
  if not path.is_file():
    pickles = [found.name for pattern in PICKLES for found in sorted(directory.glob(pattern))]
    beside = f", but {printable(pickles[0])}, which is not read" if pickles else ""
    raise UserError(
      f"{directory} holds no {WEIGHTS}{beside}; get a directory of gfnet_jax.save_pretrained, or "
      "give the path of a file of weights to load_model"
    )
  try:
    with path.open("rb") as file:
      head = file.read(9)
    found = _sha256(directory)
  except OSError as error:
    raise UserError(f"cannot read {path} ({error.strerror}); change its permissions") from error
  if head[8:] != b"{":
    raise UserError(
      f"{path} is not a safetensors file, and no other kind is read from such a directory; get it "
      "again, or give the path of a file of weights to load_model"
    )
  if found != sums.get(WEIGHTS):
    # In the cache of the hub it is a link; what it leads to would be taken again.
    raise UserError(
      f"{path} is damaged: its SHA-256 sum is not that in {CONFIG}; delete {path.resolve()}, and "
      "get both again"
    )


def _sha256(directory: Path) -> str:
  with (directory / WEIGHTS).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
