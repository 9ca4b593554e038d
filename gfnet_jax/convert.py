"""Official weights to a checkpoint of this project, and a checkpoint to PyTorch."""

from pathlib import Path

from gfnet_jax.download import CACHE_DIRECTORY, fetch
from gfnet_jax.models.gfnet import ImageSize
from gfnet_jax.torch_files import read_state_dict, write_state_dict
from gfnet_jax.torch_weights import model_from_torch, to_torch_state_dict
from gfnet_jax.training.checkpoint import SavedModel, load_model, save_model
from gfnet_jax.training.precision import compute_dtype


def import_weights(
  source: str,
  directory: Path,
  *,
  name: str | None = None,
  image_size: ImageSize | None = None,
  num_classes: int | None = None,
  ema: bool = False,
  allow_nan: bool = False,
  sha256: str | None = None,
  cache: Path = CACHE_DIRECTORY,
) -> dict:
  """Writes a checkpoint with the weights of a PyTorch or safetensors file.

  Args:
    source: a path, an http(s) address, or the name of a variant (see `fetch`).
    directory: of the new checkpoint; untouched if an error is raised.
    name: the variant; recognised if None.
    image_size: to resize for; the file's own if None.
    num_classes: for another number than the file's, the head gets fresh weights.
    ema: take the averaged weights of the file.
    allow_nan: accept NaN and infinite weights.
    sha256: the expected sum of the file.
    cache: directory in which downloads are kept.

  Returns:
    The arguments of `create_model` that describe the model.

  Raises:
    UserError: as `fetch`, `read_state_dict`, `model_from_torch` and `save_model`.
  """
  path = fetch(source, sha256=sha256, cache=cache)
  weights = read_state_dict(path, ema=ema, allow_nan=allow_nan)
  model, config = model_from_torch(
    weights, name=name, image_size=image_size, num_classes=num_classes
  )
  del weights  # before saving makes its own copy
  save_model(directory, model, config)
  return config


def load_torch_model(path: Path, precision: str | None = None, *, ema: bool = False) -> SavedModel:
  """Reads a model from a PyTorch or safetensors file, as `load_model` does from a checkpoint.

  Args:
    path: of the file.
    precision: see `compute_dtype`; None for "default".
    ema: take the averaged weights of the file.

  Raises:
    UserError: as `read_state_dict` and `model_from_torch`.
  """
  precision = precision or "default"
  dtype = compute_dtype(precision)
  model, config = model_from_torch(read_state_dict(path, ema=ema), dtype=dtype)
  return SavedModel(model, config, class_names=None, step=0, run_config=None, precision=precision)


def export_weights(directory: Path, path: Path, *, which: str = "last", ema: bool = False) -> dict:
  """Writes the model of a checkpoint as a file for the official code.

  Args:
    directory: a work directory of training or a checkpoint.
    path: a new .pth or .safetensors file.
    which: "last", "best" or a step.
    ema: take the averaged weights of the checkpoint.

  Returns:
    The arguments of `create_model` that describe the model.

  Raises:
    UserError: as `load_model` and `write_state_dict`.
  """
  saved = load_model(directory, which, ema=ema)
  write_state_dict(path, to_torch_state_dict(saved.model))
  return saved.config
