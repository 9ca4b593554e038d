"""What training does for networks that classify whole images."""

import jax
import ml_collections

from gfnet_jax.data.on_device.erasing import erase
from gfnet_jax.data.on_device.mixing import Mixing
from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.data.transforms import TrainTransform
from gfnet_jax.errors import UserError
from gfnet_jax.models.precision import parameter_dtype
from gfnet_jax.sharding import Batch
from gfnet_jax.training.learning import Preparation


def make_preparation(config: ml_collections.ConfigDict) -> Preparation:
  """Builds prepare(batch, key) -> (images, targets, labels): normalised, erased, mixed.

  Args:
    config: of the run; uses model.num_classes, precision, mixing, erasing.

  Raises:
    UserError: for an unknown mixing mode or group size.
  """
  dtype = parameter_dtype(config.precision)
  mixing = Mixing(num_classes=config.model.num_classes, **config.mixing)

  def prepare(batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    erase_key, mix_key = jax.random.split(key)
    images = normalize(batch["image"], dtype)
    if "erase" in batch:
      images = erase(images, batch["erase"], erase_key, mode=config.erasing.mode)
    return *mixing(images, batch["label"], mix_key), batch["label"]

  return prepare


def make_train_transform(config: ml_collections.ConfigDict) -> TrainTransform:
  """The augmentation that the config asks for.

  Raises:
    UserError: for one that there is not.
  """
  return TrainTransform(
    image_size=config.model.image_size, fast_decode=config.data.fast_decode, **config.augment
  )


def check(config: ml_collections.ConfigDict) -> None:
  """Raises UserError for fields that are for networks with a decoder alone."""
  for field, value in config.segmentation.items():
    if value is not None:
      raise UserError(
        f"segmentation.{field} is {value!r}, expected None for a network that classifies images; "
        "set model.decoder, as configs/segmentation.py does"
      )
