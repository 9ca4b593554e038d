"""What is measured, as clu metrics: sums and counts that merge exactly."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics

from gfnet_jax.training.losses import cross_entropy


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
  """Means over the steps since the last line of metrics."""

  loss: metrics.Average.from_output("loss")
  accuracy: metrics.Average.from_output("accuracy")
  gradient_norm: metrics.Average.from_output("gradient_norm")


@flax.struct.dataclass
class EvalMetrics(metrics.Collection):
  """Means over the images of a batch that are no padding."""

  loss: metrics.Average.from_output("loss")
  top1: metrics.Average.from_output("top1")
  top5: metrics.Average.from_output("top5")


def eval_metrics(logits: jax.Array, labels: jax.Array) -> EvalMetrics:
  """Metrics of one batch; images with a negative label are padding and do not count.

  Args:
    logits: (batch, num_classes), float32.
    labels: (batch,), int32.
  """
  rank = rank_of_label(logits, labels)
  return EvalMetrics.single_from_model_output(
    loss=cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1])),
    top1=(rank < 1).astype(jnp.float32),
    top5=(rank < 5).astype(jnp.float32),
    mask=labels >= 0,
  )


def rank_of_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """How many classes come before the label: greater, or equal and of a lower index.

  Comparisons instead of jax.lax.top_k, which would gather the batch on every device.

  Args:
    logits: (batch, num_classes), float32.
    labels: (batch,), int32.

  Returns:
    (batch,), int32; num_classes where the label's logit is NaN.
  """
  num_classes = logits.shape[-1]
  score = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  lower_index = jnp.arange(num_classes)[None] < labels[:, None]
  before = (logits > score) | ((logits == score) & lower_index)
  return jnp.where(jnp.isnan(score[:, 0]), num_classes, before.sum(axis=-1))


def summarize(batches: list[EvalMetrics]) -> dict[str, float | int]:
  """Loss, top-1 and top-5 in percent, and the number of images, summed in float64."""
  total = jax.tree.map(lambda *leaves: np.sum(np.array(leaves, np.float64)), *batches)
  return {
    "top1": 100 * float(total.top1.compute()),
    "top5": 100 * float(total.top5.compute()),
    "loss": float(total.loss.compute()),
    "images": int(total.loss.count),
  }
