"""Models as they come from a checkpoint or an official file, ready to predict."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from gfnet_jax.buckets import BucketPath, as_directory
from gfnet_jax.checkpoints.finding import find_checkpoint
from gfnet_jax.checkpoints.model import read_model
from gfnet_jax.data import imagenet
from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.errors import UserError
from gfnet_jax.inference.read_image import ImageLike, try_to_read
from gfnet_jax.models.functional import Params, merge, split
from gfnet_jax.models.precision import matmul_precision
from gfnet_jax.models.variants import list_models
from gfnet_jax.weights.convert import official_classes, read_torch_model
from gfnet_jax.weights.download import fetch
from gfnet_jax.weights.hub import fetch_from_hub, parse_address
from gfnet_jax.weights.pretrained import holds_pretrained, read_pretrained

WEIGHT_FILES = (".pth", ".pt", ".bin", ".safetensors")


class Prediction(NamedTuple):
  """A class that an image may show.

  Attributes:
    index: of the class.
    class_name: its name, or the index as text where the model has no names.
    probability: of 0 to 1.
    wnid: of a class of ImageNet, its WordNet id; class_name is then "tench", for example,
      where `SavedModel.class_names` has the wnid.
  """

  index: int
  class_name: str
  probability: float
  wnid: str | None = None


@dataclasses.dataclass(frozen=True)
class SavedModel:
  """A model read from a checkpoint or a file of weights.

  Attributes:
    model: with the saved parameters.
    config: the arguments of `create_model` that describe it.
    class_names: of the classes in order of their index, or None; wnids for ImageNet.
    step: of the training run; 0 for imported weights.
    run_config: the whole config of the training run, or None for imported weights.
    precision: for `matmul_precision`; the model's own dtype follows it already.
    fingerprints: of the images of the training run, "train" and "eval", see `fingerprint`; None
      for imported weights and runs of older versions.
    measured: what `evaluate` returned for these weights, by a name of what it was evaluated on;
      of a training run, for its data at that step.
  """

  model: nnx.Module
  config: dict
  class_names: list[str] | None = None
  step: int = 0
  run_config: dict | None = None
  precision: str = "default"
  fingerprints: dict | None = None
  measured: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

  def predict(
    self, images: ImageLike | Iterable[ImageLike], *, top: int = 5, batch_size: int = 32
  ) -> list[list[Prediction]]:
    """The most probable classes of every image, best first.

    Images are resized and cropped as in evaluation.

    Args:
      images: one or several: paths, Pillow images, or arrays (height, width, 3) or, grey,
        (height, width), uint8.
      top: classes per image; all if there are fewer.
      batch_size: images at once.

    Raises:
      UserError: for an image that cannot be read, or is of another type or size.
    """
    if isinstance(images, ImageLike) and getattr(images, "ndim", 3) <= 3:
      images = [images]
    predictions = []
    for best in self.predict_each(list(images), top=top, batch_size=batch_size):
      if isinstance(best, UserError):
        raise best
      predictions.append(best)
    return predictions

  def predict_each(
    self, images: Sequence[ImageLike], *, top: int = 5, batch_size: int = 32
  ) -> Iterator[list[Prediction] | UserError]:
    """As `predict`, one image after the other; in place of a bad image, what is wrong with it."""
    check_classifies(self)
    if top < 1 or batch_size < 1:
      raise UserError(f"top is {top} and batch_size is {batch_size}, expected at least 1 for both")
    top, batch_size = min(top, self.config["num_classes"]), min(batch_size, len(images))
    clipped = []
    for start in range(0, len(images), batch_size or 1):
      chunk = [
        try_to_read(image, self.model.image_size, clipped) for image in images[start:][:batch_size]
      ]
      pixels = [image for image in chunk if not isinstance(image, UserError)]
      predictions = iter(self._predict_batch(pixels, top, batch_size) if pixels else ())
      for image in chunk:
        yield image if isinstance(image, UserError) else next(predictions)

  def _predict_batch(
    self, pixels: list[np.ndarray], top: int, batch_size: int
  ) -> list[list[Prediction]]:
    """The classes of at most batch_size arrays of the model's image size."""
    _, params = split(self.model)
    padded = pixels + pixels[-1:] * (batch_size - len(pixels))  # one size, to be compiled once
    with matmul_precision(self.precision):
      best = jax.device_get(self._classify(params, np.stack(padded), top))
    return [
      [self._prediction(int(i), float(p)) for i, p in zip(indices, probabilities, strict=True)]
      for probabilities, indices, _ in zip(*best, pixels, strict=False)
    ]

  @functools.cached_property
  def _classify(self) -> Callable[[Params, np.ndarray, int], tuple[jax.Array, jax.Array]]:
    """Compiled: images (batch, H, W, 3), uint8, to probabilities and classes, (batch, top)."""
    structure, _ = split(self.model)

    @functools.partial(jax.jit, static_argnums=2)
    def classify(params, images, top):
      model = merge(structure, params)
      return jax.lax.top_k(jax.nn.softmax(model(normalize(images, model.dtype))), top)

    return classify

  def _prediction(self, index: int, probability: float) -> Prediction:
    saved = self.class_names[index] if self.class_names else str(index)
    name = imagenet.names().get(saved)
    return Prediction(index, name or saved, probability, saved if name else None)


def check_classifies(saved: SavedModel) -> None:
  """Raises UserError for a model that gives no class to a whole image."""
  if saved.config.get("decoder"):
    raise UserError(
      "the model segments images, expected one that classifies them; call gfnet_jax.segment, or "
      "give predict --segment DIR"
    )
  if not saved.config["num_classes"]:
    raise UserError(
      "the model has no head (num_classes is 0), expected one with classes; take its features, "
      "model.forward_features, or train one that starts from it (--config.init_checkpoint)"
    )


def load_model(
  source: Path | str, which: str = "last", *, precision: str | None = None, ema: bool = False
) -> SavedModel:
  """Loads a model with its weights, and verifies them.

  Args:
    source: a work directory of training, a directory of checkpoints or one checkpoint; a
      .pth or .safetensors file of the official code; the name of a variant, whose official
      weights are then downloaded; a directory of `save_pretrained`; or hf://OWNER/NAME, perhaps
      with @REVISION, a model of the Hugging Face hub.
    which: of the checkpoints: "last", "best" (by the top-1 accuracy of the weights that are
      taken) or a step.
    precision: see `compute_dtype`; None for that of the training run, or "default".
    ema: take the moving averages of the parameters.

  Raises:
    UserError: if there is no model, it is damaged, or the precision is unknown.
  """
  if directory := find_pretrained(source):
    if ema or which != "last":
      raise UserError(
        f"{source} holds one set of weights, with neither averages nor other steps beside them; "
        "leave out what asks for those (--ema, --which)"
      )
    return load_pretrained(directory, precision)
  path = as_directory(source)
  if _is_variant(source):
    if jax.process_count() > 1:
      raise UserError(
        f"several processes cannot download the weights of {source} at once; convert them first "
        "(convert_torch_weights.py), and name that directory"
      )
    path = fetch(str(source))
  if _is_file_of_weights(path):
    if isinstance(path, BucketPath):
      raise UserError(f"{path} is a file of weights in a store; copy it to a disk, and name that")
    model, config = read_torch_model(path, precision, ema=ema)
    names = official_classes(source, config)
    return SavedModel(model, config, names, precision=precision or "default")
  _check_spelling(path)
  model, metadata = read_model(path, which, precision=precision, ema=ema)
  return SavedModel(
    model,
    metadata["model"],
    class_names=metadata["class_names"],
    step=metadata["step"],
    run_config=metadata.get("config"),
    precision=metadata["precision"],
    fingerprints=metadata.get("data"),
    measured=_measured(metadata, ema),
  )


def find_pretrained(source: Path | str) -> Path | None:
  """The directory of `save_pretrained` that a source of `load_model` means, fetched from the hub.

  None if it means something else.

  Raises:
    UserError: as `fetch_from_hub`.
  """
  if address := parse_address(source):
    return fetch_from_hub(*address)
  path = as_directory(source)
  return path if isinstance(path, Path) and holds_pretrained(path) else None


def load_pretrained(directory: Path, precision: str | None = None) -> SavedModel:
  """Loads a model from a directory of `save_pretrained`; raises UserError as `read_pretrained`."""
  model, metadata = read_pretrained(directory, precision)
  fields = ("class_names", "step", "precision", "measured")
  return SavedModel(model, metadata["model"], **{name: metadata[name] for name in fields})


def _measured(metadata: dict, ema: bool) -> dict[str, dict[str, float]]:
  """See `SavedModel`; of the averaged weights, or of the others."""
  found = metadata.get("metrics", {})
  if ema:
    results = {name.removeprefix("ema_"): x for name, x in found.items() if name.startswith("ema_")}
    results |= {"images": found["images"]} if results and "images" in found else {}
  else:
    results = {name: x for name, x in found.items() if not name.startswith("ema_")}
  data = metadata.get("config", {}).get("data", {})
  # Of a path, which would tell of the machine, the last name.
  name = PurePath(data.get("name", "")).name or data.get("source", "")
  label = ", ".join(filter(None, (name, data.get("eval_split")))) or "data of the training run"
  return {label: results} if results else {}


def check_source(source: Path | str) -> None:
  """Raises UserError if there is nothing that `load_model` could load; the hub is not asked."""
  path = Path(source)
  if parse_address(source) or holds_pretrained(path):
    return
  if not (_is_variant(source) or as_directory(source).is_file()):
    _check_spelling(as_directory(source))
    find_checkpoint(source)


def _is_variant(source: Path | str) -> bool:
  return str(source) in list_models() and not Path(source).exists()


def _check_spelling(path: Path | BucketPath) -> None:
  """Raises UserError for what does not exist and is almost the name of a variant."""
  names = list_models()
  close = difflib.get_close_matches(str(path), names, n=1, cutoff=0.8)
  if close and not path.exists():
    raise UserError(
      f"no checkpoint in {path}, and none of the networks {', '.join(names)} is called that; did "
      f"you mean {close[0]}?"
    )


def _is_file_of_weights(path: Path | BucketPath) -> bool:
  """Also where it is missing, for the better message."""
  return path.is_file() or (path.suffix in WEIGHT_FILES and not path.exists())
