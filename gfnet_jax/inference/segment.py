"""Segments single images: the class of every pixel, at the size of the image."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from gfnet_jax.data.segmentation.samples import rounded_up
from gfnet_jax.data.segmentation.transforms import IGNORED, MaskedEvalTransform
from gfnet_jax.errors import UserError
from gfnet_jax.inference.pixels import logits_of_pixels
from gfnet_jax.inference.read_image import ImageLike, read_with
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.models.functional import Params, split
from gfnet_jax.models.image_size import as_height_width
from gfnet_jax.models.precision import matmul_precision
from gfnet_jax.models.variants import coarsest_stride
from gfnet_jax.sharding import make_mesh


def make_segmentation_transform(model: Mapping[str, Any]) -> MaskedEvalTransform:
  """The transform of whole images for the model that `create_model` makes of these arguments."""
  size = as_height_width(model.get("image_size") or 224)
  return MaskedEvalTransform(min(size), coarsest_stride(model))


def check_segments(saved: SavedModel) -> None:
  """Raises UserError for a network that classifies whole images, or has no byte for every class."""
  if not saved.config.get("decoder"):
    raise UserError(
      "the model classifies whole images, expected one that segments them (model.decoder); see "
      "docs/segmentation.md, or leave out --segment"
    )
  if saved.model.num_classes > IGNORED:
    raise UserError(
      f"the model has {saved.model.num_classes} classes, expected at most {IGNORED}, as a value of "
      "a mask is a byte; take the logits, model(images)"
    )


def segment(saved: SavedModel, image: ImageLike, clipped: list[str] | None = None) -> np.ndarray:
  """The most probable class of every pixel of an image.

  The image is resized as a whole, as in evaluation, and the logits back to its own size.

  Args:
    saved: a network with a decoder.
    image: a path, a Pillow image, or an array (height, width, 3) or, grey, (height, width), uint8.
    clipped: as for `read_image`.

  Returns:
    (height, width), uint8: indices among the model's classes.

  Raises:
    UserError: for a network that `check_segments` refuses, or an image that cannot be read.
  """
  check_segments(saved)
  arguments = {**saved.config, "image_size": saved.model.image_size}
  transform = make_segmentation_transform(arguments)
  pixels, size = read_with(image, lambda rgb: (transform(rgb), rgb.size[::-1]), clipped)
  structure, params = split(saved.model)
  # On the model's device alone, also where a run has set a mesh of all.
  alone = make_mesh(list(next(iter(params.values())).devices()))
  with jax.set_mesh(alone), matmul_precision(saved.precision):
    shape = tuple(map(rounded_up, size))
    found = _segment(structure, params, pixels[None], np.array([size], np.int32), shape)
  return np.array(jax.device_get(found)[: size[0], : size[1]])


@functools.partial(jax.jit, static_argnums=(0, 4))
def _segment(
  structure: nnx.GraphDef,
  params: Params,
  images: jax.Array,
  sizes: jax.Array,
  shape: tuple[int, int],
) -> jax.Array:
  logits = logits_of_pixels(structure, params, images, sizes, shape)
  return logits[0].argmax(-1).astype(np.uint8)
