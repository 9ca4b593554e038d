"""What training measures: means over the steps since the last line of metrics.

A metric is a function of a step's `Outcome`, and a row of METRICS. It is then computed in the
compiled step, averaged, written to metrics.jsonl and TensorBoard as train_<name>, and kept
over a restart.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from clu.metrics import Average

from gfnet_jax.models.functional import Params

Metrics = dict[str, Average]  # sums and counts, which merge exactly


class Outcome(NamedTuple):
  """What a training step has computed.

  Attributes:
    loss: of the batch, a scalar, float32 or float64.
    logits: (batch, num_classes), of the same type; of pixels (batch, height, width, num_classes).
    labels: (batch,), int32; of the images before mixing; of pixels (batch, height, width), negative
      for no class.
    params: before the step, by dotted name.
    gradients: by dotted name, before clipping.
    gradient_norm: of all gradients together, a scalar.
    updates: by dotted name; to be multiplied by minus the learning rate.
  """

  loss: jax.Array
  logits: jax.Array
  labels: jax.Array
  params: Params
  gradients: Params
  gradient_norm: jax.Array
  updates: Params


def loss(outcome: Outcome) -> jax.Array:
  """The loss that is minimised, with label smoothing and distillation: a scalar."""
  return outcome.loss


def accuracy(outcome: Outcome) -> jax.Array:
  """1 where the most probable class is the label, else 0: (batch,), of the logits' type.

  Of pixels, the share of an image's that are right, of those that have a class.
  """
  right, pixels = outcome.logits.argmax(-1) == outcome.labels, range(1, outcome.labels.ndim)
  known = (outcome.labels >= 0).sum(tuple(pixels)).clip(1).astype(outcome.logits.dtype)
  return right.sum(tuple(pixels)).astype(outcome.logits.dtype) / known


def gradient_norm(outcome: Outcome) -> jax.Array:
  """The norm of all gradients together, before clipping: a scalar."""
  return outcome.gradient_norm


METRICS: dict[str, Callable[[Outcome], jax.Array]] = {
  "loss": loss,
  "accuracy": accuracy,
  "gradient_norm": gradient_norm,
}


def empty(params: Params) -> Metrics:
  """Means of nothing yet, to be summed in the type of the parameters."""
  dtype = next(iter(params.values())).dtype
  return {
    name: Average(total=jnp.zeros((), dtype), count=jnp.zeros((), jnp.int32)) for name in METRICS
  }


def update(metrics: Metrics, outcome: Outcome) -> Metrics:
  """The metrics with one more step."""
  return {
    name: metrics[name].merge(Average.from_model_output(metric(outcome)))
    for name, metric in METRICS.items()
  }


def means(metrics: Metrics) -> dict[str, float]:
  """The means by name, in the order of METRICS; none of a metric without a step."""
  return {
    f"train_{name}": float(metrics[name].compute()) for name in METRICS if metrics[name].count
  }
