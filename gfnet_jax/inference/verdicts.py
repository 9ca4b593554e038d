"""What a model says of every single image of an evaluation."""

from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.inference.metrics import Averages, measure
from gfnet_jax.models.functional import Params, merge
from gfnet_jax.sharding import Batch, replicated, split_batch


class Verdicts(NamedTuple):
  """What a model says of the images of a source, in their order.

  Attributes:
    labels: (images,), int32.
    predicted: (images,), int32: the most probable class.
    probabilities: (images,), float32: of that class, 0 to 1.
  """

  labels: np.ndarray
  predicted: np.ndarray
  probabilities: np.ndarray


class JudgingStep:
  """A step for `evaluate_params` that remembers the verdicts on the images which it measures.

  Args:
    structure: of the model.
    mesh: of `make_mesh`; call the step under `jax.set_mesh(mesh)`.
  """

  def __init__(self, structure: nnx.GraphDef, mesh: Mesh):
    def judge(params: Params, batch: Batch) -> tuple[Averages, Verdicts]:
      logits, labels = merge(structure, params)(normalize(batch["image"])), batch["label"]
      verdicts = Verdicts(labels, logits.argmax(-1), jax.nn.softmax(logits).max(-1))
      return measure(logits, labels), verdicts

    whole = replicated(mesh)
    self._judge = jax.jit(judge, in_shardings=(whole, split_batch(mesh)), out_shardings=whole)
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
