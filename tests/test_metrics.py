"""Metrics against hand-computed answers, and a metric of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfnet_jax.inference import metrics as evaluation
from gfnet_jax.inference.metrics import Metric, format_results, rank_of_label, summarize
from gfnet_jax.training import metrics as training


def measure(logits, labels) -> dict:
  """As one program, of the metrics that there are now."""
  return jax.jit(lambda *arrays: evaluation.measure(*arrays))(logits, labels)


def test_evaluation_counts_what_is_no_padding():
  logits = jnp.array(
    [
      [9.0, 0, 0, 0, 0, 0, 0],  # right
      [7.0, 6, 5, 4, 3, 2, 1],  # right within five
      [7.0, 6, 5, 4, 3, 2, 1],  # wrong
      [9.0, 0, 0, 0, 0, 0, 0],  # padding
    ]
  )
  first = measure(logits, jnp.array([0, 4, 5, -1]))
  second = measure(logits[:1], jnp.array([0]))
  result = summarize([first, second])
  assert result["images"] == 4
  assert result["top1"] == pytest.approx(50)
  assert result["top5"] == pytest.approx(75)
  right = np.log(np.exp(9) + 6) - 9
  ranked = np.log(np.exp(np.arange(1, 8)).sum()) - np.array([3, 2])
  assert result["loss"] == pytest.approx((2 * right + ranked.sum()) / 4, rel=1e-6)


def test_fewer_than_five_classes():
  result = summarize([measure(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([0]))])
  assert (result["top1"], result["top5"]) == (0, 100)


def test_ranks_with_ties_and_nan():
  logits = jnp.array([[1.0, 3, 3, 2], [1, 3, 3, 2], [0, 0, 0, 0], [1, jnp.nan, 3, 2]])
  ranks = rank_of_label(logits, jnp.array([1, 2, 3, 1]))
  assert ranks.tolist() == [0, 1, 3, 4]


def test_a_metric_of_evaluation_is_one_row(monkeypatch):
  def best(logits, labels):
    return logits.max(-1)

  known = {name: evaluation.METRICS[name] for name in ("top1", "top5", "loss")}
  monkeypatch.setattr(evaluation, "METRICS", known | {"best": Metric(best, "best logit")})
  logits = jnp.array([[1.0, 5.0], [3.0, 2.0], [9.0, 0.0]])
  results = summarize([measure(logits, jnp.array([0, 1, -1]))])
  assert list(results) == ["top1", "top5", "loss", "best", "images"]
  assert results["best"] == 4
  line = format_results(results | {"images_per_second": 1234.5})
  assert line == (
    "top-1   0.00 %   top-5 100.00 %   loss 2.6657   best logit 4.0000   2 images   1,234 images/s"
  )


def outcome(loss, logits, labels) -> training.Outcome:
  norm = jnp.float32(2.0)
  return training.Outcome(jnp.float32(loss), jnp.array(logits), jnp.array(labels), {}, {}, norm, {})


def test_means_of_training_are_over_steps_and_images(monkeypatch):
  known = {name: training.METRICS[name] for name in ("loss", "accuracy", "gradient_norm")}
  monkeypatch.setattr(training, "METRICS", known)
  metrics = training.empty({"bias": jnp.zeros(1)})
  assert training.means(metrics) == {}
  for loss, labels in ((1.0, [0, 1]), (4.0, [1, 1])):
    metrics = training.update(metrics, outcome(loss, [[1.0, 0.0], [0.0, 1.0]], labels))
  assert training.means(jax.device_get(metrics)) == {
    "train_loss": 2.5,
    "train_accuracy": 0.75,
    "train_gradient_norm": 2.0,
  }


def test_a_metric_of_training_is_one_function(monkeypatch):
  monkeypatch.setattr(training, "METRICS", {"loss": training.loss})
  monkeypatch.setitem(training.METRICS, "largest", lambda outcome: outcome.logits.max(-1))
  nothing = training.empty({"bias": jnp.zeros(1)})
  metrics = training.update(nothing, outcome(1.0, [[1.0, 0.0], [0.0, 3.0]], [0, 0]))
  assert training.means(jax.device_get(metrics))["train_largest"] == 2.0
