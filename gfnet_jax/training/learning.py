"""What training does otherwise for networks that classify images and those that segment them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections

from gfnet_jax.sharding import Batch

Preparation = Callable[[Batch, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


class Learning(NamedTuple):
  """The seam between a run and what its network is for; the two are in `tasks`.

  Attributes:
    check: raises UserError for a config that asks for what there is not for such a network.
    make_train_transform: config to the augmentation of a training image.
    make_preparation: config to prepare(batch, key) -> (images, targets, labels), on the device.
    loss: (logits, targets) to the loss of every image or pixel, whose mean is minimised.
  """

  check: Callable[[ml_collections.ConfigDict], None]
  make_train_transform: Callable[[ml_collections.ConfigDict], Any]
  make_preparation: Callable[[ml_collections.ConfigDict], Preparation]
  loss: Callable[[jax.Array, jax.Array], jax.Array]
