"""What training does for networks that give every pixel a class."""

import jax
import jax.numpy as jnp
import ml_collections

from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.data.segmentation.transforms import IGNORED, MaskedTrainTransform
from gfnet_jax.errors import UserError
from gfnet_jax.models.precision import parameter_dtype
from gfnet_jax.sharding import Batch
from gfnet_jax.training.learning import Preparation

# What moves or mixes pixels, and knows nothing of masks; and the values that leave it out.
LEFT_OUT = {
  "augment.auto_augment": "",
  "augment.color_jitter": 0.0,
  "mixing.mixup_alpha": 0.0,
  "mixing.cutmix_alpha": 0.0,
  "mixing.cutmix_minmax": None,
  "mixing.smoothing": 0.0,
  "erasing.probability": 0.0,
  "distillation.teacher": "",
}


def check(config: ml_collections.ConfigDict) -> None:
  """Raises UserError for fields that are for networks which classify images alone."""
  for field, expected in LEFT_OUT.items():
    section, name = field.split(".")
    if (found := config[section][name]) != expected:
      raise UserError(
        f"{field} is {found!r}, expected {expected!r} with model.decoder={config.model.decoder!r}: "
        "it is not for images with masks; begin with configs/segmentation.py"
      )


def make_train_transform(config: ml_collections.ConfigDict) -> MaskedTrainTransform:
  """The augmentation that the config asks for: what it leaves open is the published recipe's.

  Raises:
    UserError: for a scale that is none.
  """
  given = {name: value for name, value in config.segmentation.items() if value is not None}
  return MaskedTrainTransform(image_size=config.model.image_size, flip=config.augment.flip, **given)


def make_preparation(config: ml_collections.ConfigDict) -> Preparation:
  """Builds prepare(batch, key) -> (images, targets, labels): normalised; targets are the labels.

  Args:
    config: of the run; uses precision.
  """
  dtype = parameter_dtype(config.precision)

  def prepare(batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    del key
    labels = batch["label"].astype(jnp.int32)
    labels = jnp.where(labels == IGNORED, -1, labels)
    return normalize(batch["image"], dtype), labels, labels

  return prepare
