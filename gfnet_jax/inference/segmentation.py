"""Evaluates networks that give every pixel a class: one confusion matrix of all pixels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gfnet_jax.data.segmentation.samples import MASKED
from gfnet_jax.inference.metrics import PIXEL_METRICS
from gfnet_jax.inference.pixels import (
  PixelCounts,
  count_pixels,
  logits_of_pixels,
  scores_of,
  total_counts,
)
from gfnet_jax.inference.segment import make_segmentation_transform
from gfnet_jax.inference.segmentation_report import write_segmentation_report
from gfnet_jax.inference.task import Task
from gfnet_jax.models.functional import Params
from gfnet_jax.sharding import Batch, replicated, split_batch


def make_segmentation_step(
  structure: nnx.GraphDef, mesh: Mesh, outputs: None = None
) -> Callable[[Params, Batch], PixelCounts]:
  """Compiles eval_step(params, batch) -> `PixelCounts`, once per size of images.

  Call it under `jax.set_mesh(mesh)`: the filter shards its transforms over the mesh.

  Args:
    structure: of the model.
    mesh: of `make_mesh`.
    outputs: None; a mask has all classes of the model.
  """
  del outputs

  def eval_step(params: Params, batch: Batch) -> PixelCounts:
    labels = batch["label"]
    logits = logits_of_pixels(structure, params, batch["image"], batch["size"], labels.shape[1:])
    confusion, loss = count_pixels(logits, labels)
    return PixelCounts(confusion, loss, batch["counted"].sum(dtype=jnp.int32))

  whole = replicated(mesh)
  return jax.jit(eval_step, in_shardings=(whole, split_batch(mesh)), out_shardings=whole)


class ConfusionStep:
  """A step for `evaluate_params` that remembers its counts; made as by `make_segmentation_step`."""

  def __init__(self, structure: nnx.GraphDef, mesh: Mesh, outputs: None = None):
    self._step, self._counts = make_segmentation_step(structure, mesh, outputs), []

  def lower(self, params: Params, batch: Batch) -> jax.stages.Lowered:
    """As of a jitted function."""
    return self._step.lower(params, batch)

  def __call__(self, params: Params, batch: Batch) -> PixelCounts:
    """The counts of a batch."""
    self._counts.append(self._step(params, batch))
    return self._counts[-1]

  def confusion(self) -> np.ndarray:
    """That of all calls so far: (classes, classes), int64."""
    return total_counts(jax.device_get(self._counts)).confusion


def summarize_pixels(batches: list[PixelCounts]) -> dict[str, float | int]:
  """The metrics of PIXEL_METRICS and the number of images, of the counts of all batches."""
  total = total_counts(batches)
  scores = scores_of(total.confusion)
  pixels = max(1, total.confusion.sum())
  return scores | {"loss": float(total.loss / pixels), "images": int(total.images)}


SEGMENTATION = Task(
  form=MASKED,
  make_transform=make_segmentation_transform,
  make_step=make_segmentation_step,
  make_judging_step=ConfusionStep,
  summarize=summarize_pixels,
  write_report=write_segmentation_report,
  metrics=PIXEL_METRICS,
)
