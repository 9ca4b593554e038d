"""What a model says of every single image of an evaluation."""

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.inference.attacks import Attack, attack_images
from gfnet_jax.inference.metrics import Averages, measure
from gfnet_jax.models.functional import Params, merge
from gfnet_jax.sharding import Batch, replicated, split_batch


class Verdicts(NamedTuple):
  """What a model says of the images of a source, in their order.

  Attributes:
    labels: (images,), int32.
    predicted: (images,), int32: the most probable class.
    probabilities: (images,), float32 or float64: of that class, 0 to 1.
  """

  labels: np.ndarray
  predicted: np.ndarray
  probabilities: np.ndarray


def compute_logits(
  structure: nnx.GraphDef,
  params: Params,
  batch: Batch,
  outputs: tuple[int, ...] | None,
  attack: Attack | None = None,
) -> jax.Array:
  """The logits of a batch as it comes from the host: (batch, classes), float32 or float64.

  Args:
    structure: of the model.
    params: by dotted name.
    batch: with `image`, (batch, H, W, 3), uint8; for an attack also `label` and `index`, (batch,),
      int32, see `NumberedStep`.
    outputs: the classes to tell apart, in the order of the labels; None: all.
    attack: on the images, to maximise the loss of just these logits.
  """
  model = merge(structure, params)

  def logits_of(images: jax.Array) -> jax.Array:
    logits = model(images)
    return logits if outputs is None else logits[:, np.array(outputs)]

  images = normalize(batch["image"], model.dtype)
  if attack is not None:
    images = attack_images(attack, logits_of, images, batch["label"], batch["index"])
  return logits_of(images)


class NumberedStep:
  """A step for `evaluate_params` that knows which images of the data set are in its batches.

  Args:
    step: jitted, of (params, batch); its batches have `index`, (batch,), int32, as well.
    mesh: of `make_mesh`.
  """

  def __init__(self, step: jax.stages.Wrapped, mesh: Mesh):
    self._step, self._sharding, self._seen = step, split_batch(mesh), 0

  def lower(self, params: Params, batch: Batch) -> jax.stages.Lowered:
    """As of a jitted function."""
    return self._step.lower(params, self._numbered(batch))

  def __call__(self, params: Params, batch: Batch) -> Any:
    """What the step returns; every call continues where the one before ended."""
    numbered = self._numbered(batch)
    self._seen += len(batch["label"])
    return self._step(params, numbered)

  def _numbered(self, batch: Batch) -> Batch:
    indices = self._seen + np.arange(len(batch["label"]), dtype=np.int32)
    placed = jax.make_array_from_callback(indices.shape, self._sharding, indices.__getitem__)
    return batch | {"index": placed}


class JudgingStep:
  """A step for `evaluate_params` that remembers the verdicts on the images which it measures.

  Args:
    structure: of the model.
    mesh: of `make_mesh`; call the step under `jax.set_mesh(mesh)`.
    outputs: as for `compute_logits`.
    attack: as for `compute_logits`.
  """

  def __init__(
    self,
    structure: nnx.GraphDef,
    mesh: Mesh,
    outputs: tuple[int, ...] | None = None,
    attack: Attack | None = None,
  ):
    def judge(params: Params, batch: Batch) -> tuple[Averages, Verdicts]:
      logits, labels = compute_logits(structure, params, batch, outputs, attack), batch["label"]
      verdicts = Verdicts(labels, logits.argmax(-1), jax.nn.softmax(logits).max(-1))
      return measure(logits, labels, batch.get("shown")), verdicts

    whole = replicated(mesh)
    judge = jax.jit(judge, in_shardings=(whole, split_batch(mesh)), out_shardings=whole)
    self._judge = judge if attack is None else NumberedStep(judge, mesh)
    self._batches = []

  def lower(self, params: Params, batch: Batch) -> jax.stages.Lowered:
    """As of a jitted function."""
    return self._judge.lower(params, batch)

  def __call__(self, params: Params, batch: Batch) -> Averages:
    """The metrics of a batch, as `metrics.measure`."""
    averages, verdicts = self._judge(params, batch)
    self._batches.append(verdicts)
    return averages

  def verdicts(self) -> Verdicts:
    """Those of all calls so far, without padding."""
    batches = jax.device_get(self._batches)
    joined = Verdicts(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))
    return Verdicts(*(array[joined.labels >= 0] for array in joined))
