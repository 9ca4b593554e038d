"""From official weights to a checkpoint of ours, and from a checkpoint to PyTorch."""

from pathlib import Path

from gfnet_jax.buckets import BucketPath
from gfnet_jax.checkpoints.model import read_model, save_model
from gfnet_jax.data import imagenet
from gfnet_jax.models.base import Network
from gfnet_jax.models.image_size import ImageSize
from gfnet_jax.models.precision import compute_dtype, parameter_dtype
from gfnet_jax.weights.download import CACHE_DIRECTORY, OFFICIAL_ADDRESSES, fetch
from gfnet_jax.weights.files import read_state_dict, write_state_dict
from gfnet_jax.weights.state_dict import model_from_torch, to_torch_state_dict


def import_weights(
  source: str,
  directory: Path | BucketPath,
  *,
  name: str | None = None,
  image_size: ImageSize | None = None,
  num_classes: int | None = None,
  in_dim: int | None = None,
  precision: str = "default",
  ema: bool = False,
  allow_nan: bool = False,
  sha256: str | None = None,
  cache: Path = CACHE_DIRECTORY,
) -> dict:
  """Writes a checkpoint with the weights of a PyTorch or safetensors file.

  It names ImageNet's classes if these are official weights, see `official_classes`.

  Args:
    source: a path, an http(s) address, or the name of a variant (see `fetch`).
    directory: where the checkpoint is written, perhaps in a store; untouched if an error is raised.
    name: the variant; recognised from the weights if None.
    image_size: the size to resize the weights for, in pixels; the file's own if None.
    num_classes: outputs of the head; if they differ from the file's, or it has no head, the
      head gets fresh weights. 0 for a model without one.
    in_dim: channels of the images, see `adapt_channels`; the file's own if None.
    precision: "float64" keeps the bits of weights of that type; float32 otherwise.
    ema: take the averaged weights in the file.
    allow_nan: accept NaN and infinite weights.
    sha256: the expected SHA-256 sum of the file, in hexadecimal.
    cache: the directory that keeps downloads.

  Returns:
    The arguments of `create_model` that describe the model.

  Raises:
    UserError: as `parameter_dtype`, `fetch`, `read_state_dict`, `model_from_torch` and
      `save_model`.
  """
  total = parameter_dtype(precision)
  path = fetch(source, sha256=sha256, cache=cache)
  weights = read_state_dict(path, ema=ema, allow_nan=allow_nan, dtype=total)
  model, config = model_from_torch(
    weights,
    name=name,
    image_size=image_size,
    num_classes=num_classes,
    in_dim=in_dim,
    dtype=total,
  )
  own_classes = weights["head.weight"].shape[0] if "head.weight" in weights else None
  del weights  # before saving makes its own copy
  fresh_head = own_classes != config["num_classes"]
  save_model(directory, model, config, None if fresh_head else official_classes(source, config))
  return config


def read_torch_model(
  path: Path | str, precision: str | None = None, *, ema: bool = False
) -> tuple[Network, dict]:
  """Reads a model from a PyTorch or safetensors file, as `read_model` does from a checkpoint.

  Args:
    path: the file.
    precision: see `compute_dtype`; None for "default".
    ema: take the averaged weights in the file.

  Returns:
    The model, and the arguments of `create_model` that describe it.

  Raises:
    UserError: as `compute_dtype`, `read_state_dict` and `model_from_torch`.
  """
  precision = precision or "default"
  weights = read_state_dict(path, ema=ema, dtype=parameter_dtype(precision))
  return model_from_torch(weights, dtype=compute_dtype(precision))


def official_classes(source: Path | str, config: dict) -> list[str] | None:
  """The classes of the official weights for ImageNet; None where that is not certain.

  It is for 1000 classes of a file that the official repository publishes: named by its variant
  or by its address, or assumed where a file here has the published name, such as gfnet-xs.pth.
  Others of 1000 classes, those of other addresses among them, may have any, in any order.

  Args:
    source: as for `fetch`.
    config: the arguments of `create_model` for the model in it.

  Returns:
    The wnids of `imagenet.wnids`, in the order of the labels.
  """
  variants = {address: name for name, address in OFFICIAL_ADDRESSES.items()}
  address = "://" in str(source)
  name = None if address else Path(source).stem if Path(source).suffix else str(source)
  name = variants.get(str(source), name)
  return imagenet.wnids() if (config["name"], config["num_classes"]) == (name, 1000) else None


def export_weights(
  directory: Path,
  path: Path,
  *,
  which: str = "last",
  precision: str | None = None,
  ema: bool = False,
) -> dict:
  """Writes the model of a checkpoint to a file for the official code.

  Args:
    directory: a work directory of training, or a checkpoint.
    path: a new .pth or .safetensors file.
    which: "last", "best" or a step.
    precision: "float64" for weights of that type; None for that of the training run, or float32.
    ema: take the averaged weights in the checkpoint.

  Returns:
    The arguments of `create_model` that describe the model.

  Raises:
    UserError: as `read_model`, `to_torch_state_dict` and `write_state_dict`.
  """
  model, metadata = read_model(directory, which, precision=precision, ema=ema)
  write_state_dict(path, to_torch_state_dict(model))
  return metadata["model"]
