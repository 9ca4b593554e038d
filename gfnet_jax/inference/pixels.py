"""What a network says of every pixel, at the size of the original, and how often it is right."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.data.segmentation.transforms import IGNORED
from gfnet_jax.losses import pixel_cross_entropy
from gfnet_jax.models.functional import Params, merge


class PixelCounts(NamedTuple):
  """What is counted of a batch, and summed over all.

  Attributes:
    confusion: (classes, classes), integer: pixels of a class (row) that are taken for one (column).
    loss: the sum of the cross-entropies of these pixels, float.
    images: how many there were, without padding.
  """

  confusion: jax.Array | np.ndarray
  loss: jax.Array | np.ndarray
  images: jax.Array | np.ndarray


def logits_of_pixels(
  structure: nnx.GraphDef,
  params: Params,
  images: jax.Array,
  sizes: jax.Array,
  shape: tuple[int, int],
) -> jax.Array:
  """The logits of whole images, at the sizes of their originals.

  Args:
    structure: of the model.
    params: by dotted name.
    images: (batch, h, w, 3), uint8, resized by `MaskedEvalTransform`.
    sizes: as for `resample`, whose result this is.
    shape: likewise.
  """
  model = merge(structure, params)
  return resample(model(normalize(images, model.dtype)), sizes, shape)


def resample(logits: jax.Array, sizes: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Interpolates logits to the size of each original, as PyTorch's with align_corners=False.

  The sizes are data, and only `shape` is compiled: one program serves originals of many sizes.

  Args:
    logits: (batch, h, w, classes), float32 or float64.
    sizes: (batch, 2), int32: height and width of each original, at most those of `shape`.
    shape: (height, width) of the result.

  Returns:
    (batch, *shape, classes) of the same type; what lies beyond an original repeats its border.
  """
  rows = _interpolation(logits.shape[1], sizes[:, 0], shape[0], logits.dtype)
  columns = _interpolation(logits.shape[2], sizes[:, 1], shape[1], logits.dtype)
  multiply = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  return multiply("bWw,bHwc->bHWc", columns, multiply("bHh,bhwc->bHwc", rows, logits))


def _interpolation(before: int, after: jax.Array, longest: int, dtype: jnp.dtype) -> jax.Array:
  """(batch, longest, before): the weights of every old place in every new one."""
  place = jnp.arange(longest, dtype=dtype)[None] + 0.5
  place = place * (before / after.astype(dtype))[:, None] - 0.5
  place = place.clip(0, before - 1)
  distance = jnp.abs(place[:, :, None] - jnp.arange(before, dtype=dtype)[None, None])
  return (1 - distance).clip(0)


def count_pixels(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The confusion matrix of a batch, and the sum of the cross-entropies of the same pixels.

  Args:
    logits: (batch, height, width, classes), float32 or float64.
    labels: (batch, height, width), uint8; IGNORED pixels do not count.

  Returns:
    (classes, classes), int32, and a scalar of the logits' type.
  """
  classes = logits.shape[-1]
  labels = labels.astype(jnp.int32)
  known, predicted = labels != IGNORED, logits.argmax(-1).astype(jnp.int32)
  cell = jnp.where(known, labels * classes + predicted, classes**2).reshape(len(labels), -1)

  def count(cells: jax.Array) -> jax.Array:
    return jnp.zeros(classes**2 + 1, jnp.int32).at[cells].add(1)

  counts = jax.vmap(count)(cell).sum(0, dtype=jnp.int32)  # image by image: devices need not talk
  loss = pixel_cross_entropy(logits, jnp.where(known, labels, -1)).sum()
  return counts[:-1].reshape(classes, classes), loss


def total_counts(batches: list[PixelCounts]) -> PixelCounts:
  """The sums of all batches, in int64 and float64."""
  confusion, loss, images = zip(*batches, strict=True)
  return PixelCounts(
    np.sum(np.array(confusion, np.int64), 0), np.sum(np.array(loss, np.float64)), sum(images)
  )


def scores_of(confusion: np.ndarray) -> dict[str, float]:
  """The scores of one confusion matrix of all pixels, in percent.

  Args:
    confusion: (classes, classes), integer: pixels of a class (row) taken for one (column).

  Returns:
    "miou": the mean over classes of the intersection of truth and prediction over their union;
    classes in neither are left out. "class_accuracy": the mean share of a class's pixels that are
    found, over the classes in the truth. "pixel_accuracy": the share of all pixels that are right.
  """
  right = np.diag(confusion).astype(np.float64)
  true, predicted = confusion.sum(1), confusion.sum(0)
  union = true + predicted - right
  return {
    "miou": 100 * _mean(right[union > 0] / union[union > 0]),
    "pixel_accuracy": 100 * _mean(np.array([right.sum() / max(1, confusion.sum())])),
    "class_accuracy": 100 * _mean(right[true > 0] / true[true > 0]),
  }


def _mean(values: np.ndarray) -> float:
  return float(values.mean()) if values.size else 0.0
