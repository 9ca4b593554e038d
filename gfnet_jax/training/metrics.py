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
  num_classes = logits.shape[-1]
  _, ranked = jax.lax.top_k(logits, min(5, num_classes))
  hits = ranked == labels[:, None]
  return EvalMetrics.single_from_model_output(
    loss=cross_entropy(logits, jax.nn.one_hot(labels, num_classes)),
    top1=hits[:, 0].astype(jnp.float32),
    top5=hits.any(axis=-1).astype(jnp.float32),
    mask=labels >= 0,
  )


def summarize(batches: list[EvalMetrics]) -> dict[str, float | int]:
  """Loss, top-1 and top-5 in percent, and the number of images, summed in float64."""
  total = jax.tree.map(lambda *leaves: np.sum(np.array(leaves, np.float64)), *batches)
  return {
    "top1": 100 * float(total.top1.compute()),
    "top5": 100 * float(total.top5.compute()),
    "loss": float(total.loss.compute()),
    "images": int(total.loss.count),
  }
