"""What the network of a run is for, and so what its training does."""

from collections.abc import Mapping
from typing import Any

from gfnet_jax.losses import cross_entropy, pixel_cross_entropy
from gfnet_jax.training import classification, segmentation
from gfnet_jax.training.learning import Learning

CLASSIFICATION = Learning(
  classification.check,
  classification.make_train_transform,
  classification.make_preparation,
  cross_entropy,
)
SEGMENTATION = Learning(
  segmentation.check,
  segmentation.make_train_transform,
  segmentation.make_preparation,
  pixel_cross_entropy,
)


def learning_of(model: Mapping[str, Any]) -> Learning:
  """That of the `model` section of a config."""
  return SEGMENTATION if model.get("decoder") else CLASSIFICATION
