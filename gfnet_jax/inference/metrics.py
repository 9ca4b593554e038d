"""What an evaluation measures.

A metric is a function of (logits, labels) to one value per image, and a row of METRICS.
It is then computed, averaged over all images, printed, written to metrics.jsonl and
TensorBoard, for averaged weights as well.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Average

from gfnet_jax.losses import cross_entropy

Averages = dict[str, Average]  # sums and counts, by name
REAL = "real"  # of data that tell all classes that an image shows


class Metric(NamedTuple):
  """How an evaluation computes and shows a metric.

  Attributes:
    compute: (logits (batch, num_classes) float32 or float64, labels (batch,) int32) to (batch,);
      None for one that is no mean over images (PIXEL_METRICS).
    title: on the screen.
    percent: whether its mean is a share, to be reported in percent.
    more_classes_than: of a model for which it is worth a place on the screen.
  """

  compute: Callable[[jax.Array, jax.Array], jax.Array] | None
  title: str
  percent: bool = False
  more_classes_than: int = 0


def top1(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """1 where the label is the most probable class, else 0: (batch,), float32."""
  return (rank_of_label(logits, labels) < 1).astype(jnp.float32)


def top5(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """1 where the label is among the five most probable classes, else 0: (batch,), float32."""
  return (rank_of_label(logits, labels) < 5).astype(jnp.float32)


def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The cross-entropy of every image, without label smoothing: (batch,), of the logits' type."""
  return cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype))


METRICS = {
  "top1": Metric(top1, "top-1", percent=True),
  "top5": Metric(top5, "top-5", percent=True, more_classes_than=5),
  "loss": Metric(loss, "loss"),
}

# Of all pixels together, see `pixels.scores_of`: how they are shown.
PIXEL_METRICS = {
  "miou": Metric(None, "mIoU", percent=True),
  "pixel_accuracy": Metric(None, "pixels", percent=True),
  "class_accuracy": Metric(None, "classes", percent=True),
  "loss": Metric(None, "loss"),
}


def measure(logits: jax.Array, labels: jax.Array, shown: jax.Array | None = None) -> Averages:
  """The metrics of one batch; images with a negative label are padding and do not count.

  Args:
    logits: (batch, num_classes), float32 or float64.
    labels: (batch,), int32.
    shown: (batch, num_classes), bool: all classes that an image shows, if the data tell; adds
      `real`, in which images that show none do not count.
  """
  counted = labels >= 0
  averages = {
    name: Average.from_model_output(metric.compute(logits, labels), mask=counted)
    for name, metric in METRICS.items()
  }
  if shown is not None:
    averages[REAL] = Average.from_model_output(real(logits, shown), mask=counted & shown.any(-1))
  return averages


def real(logits: jax.Array, shown: jax.Array) -> jax.Array:
  """1 where the most probable class is one that the image shows, else 0: (batch,), float32.

  So count "reassessed labels", ReaL (arXiv:2006.07159).

  Args:
    logits: (batch, num_classes), float32 or float64.
    shown: (batch, num_classes), bool.
  """
  best = logits.argmax(-1)
  hit = jnp.take_along_axis(shown, best[:, None], axis=-1)[:, 0]
  return (hit & ~jnp.isnan(logits).any(-1)).astype(jnp.float32)


def summarize(batches: list[Averages]) -> dict[str, float | int]:
  """The means over all images, and the number of images; summed in float64."""
  total = jax.tree.map(lambda *leaves: np.sum(np.array(leaves, np.float64)), *batches)
  means = {name: float(total[name].compute()) for name in METRICS}
  scale = {name: 100 if metric.percent else 1 for name, metric in METRICS.items()}
  summary = {name: scale[name] * means[name] for name in METRICS}
  summary |= {"images": int(total["loss"].count)}
  if REAL in total:
    counted = int(total[REAL].count)
    mean = 100 * float(total[REAL].compute()) if counted else math.nan
    summary |= {"real": mean, "real_images": counted}
  return summary


def format_results(results: dict[str, float | int], num_classes: int | None = None) -> str:
  """One line for the results of an evaluation of a model with so many classes, if known."""
  parts = [format_means(results, num_classes), f"{results['images']} images"]
  if "real" in results:
    parts.insert(0, f"ReaL {results['real']:6.2f} % of {results['real_images']}")
  if "classes_present" in results:
    present, compared = results["classes_present"], results["classes_compared"]
    among = "these" if compared == present else f"all {compared}"
    parts.append(f"{present} classes present, chosen among {among}")
  return "   ".join([*parts, f"{results['images_per_second']:,.0f} images/s"])


def format_means(means: dict[str, float], num_classes: int | None = None) -> str:
  """The means of an evaluation as a part of a line; no top-5 of five classes or fewer."""
  table = PIXEL_METRICS if "miou" in means else METRICS
  return "   ".join(
    f"{metric.title} {means[name]:6.2f} %"
    if metric.percent
    else f"{metric.title} {means[name]:.4f}"
    for name, metric in table.items()
    if num_classes is None or num_classes > metric.more_classes_than
  )


def rank_of_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """How many classes come before the label: greater, or equal and of a lower index.

  Comparisons instead of jax.lax.top_k, which would gather the batch on every device.

  Args:
    logits: (batch, num_classes), float32 or float64.
    labels: (batch,), int32.

  Returns:
    (batch,), int32; num_classes where the label's logit is NaN.
  """
  num_classes = logits.shape[-1]
  score = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  lower_index = jnp.arange(num_classes, dtype=labels.dtype)[None] < labels[:, None]
  before = (logits > score) | ((logits == score) & lower_index)
  return jnp.where(jnp.isnan(score[:, 0]), num_classes, before.sum(axis=-1))
