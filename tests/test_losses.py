"""Losses and metrics against hand-computed answers."""

import jax.numpy as jnp
import numpy as np
import pytest

from gfnet_jax.training.losses import cross_entropy, distillation_loss
from gfnet_jax.training.metrics import eval_metrics, rank_of_label, summarize


def test_cross_entropy_by_hand():
  logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  assert cross_entropy(logits, jnp.array([[0.0, 1.0, 0.0]]))[0] == pytest.approx(np.log(4))
  soft = cross_entropy(logits, jnp.array([[0.5, 0.5, 0.0]]))[0]
  assert soft == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(4))


def test_evaluation_counts_what_is_no_padding():
  logits = jnp.array(
    [
      [9.0, 0, 0, 0, 0, 0, 0],  # right
      [7.0, 6, 5, 4, 3, 2, 1],  # right within five
      [7.0, 6, 5, 4, 3, 2, 1],  # wrong
      [9.0, 0, 0, 0, 0, 0, 0],  # padding
    ]
  )
  first = eval_metrics(logits, jnp.array([0, 4, 5, -1]))
  second = eval_metrics(logits[:1], jnp.array([0]))
  result = summarize([first, second])
  assert result["images"] == 4
  assert result["top1"] == pytest.approx(50)
  assert result["top5"] == pytest.approx(75)
  right = np.log(np.exp(9) + 6) - 9
  ranked = np.log(np.exp(np.arange(1, 8)).sum()) - np.array([3, 2])
  assert result["loss"] == pytest.approx((2 * right + ranked.sum()) / 4, rel=1e-6)


def test_fewer_than_five_classes():
  result = summarize([eval_metrics(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([0]))])
  assert (result["top1"], result["top5"]) == (0, 100)


def test_ranks_with_ties_and_nan():
  logits = jnp.array([[1.0, 3, 3, 2], [1, 3, 3, 2], [0, 0, 0, 0], [1, jnp.nan, 3, 2]])
  ranks = rank_of_label(logits, jnp.array([1, 2, 3, 1]))
  assert ranks.tolist() == [0, 1, 3, 4]


def test_distillation_by_hand():
  student = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  teacher = jnp.log(jnp.array([[0.25, 0.5, 0.25]]))
  soft = distillation_loss(student, teacher, kind="soft", temperature=1.0)
  assert soft[0] == pytest.approx((0.25 * np.log(0.5) + 0.5 * np.log(2)) / 3)
  hard = distillation_loss(student, teacher, kind="hard", temperature=1.0)
  assert hard[0] == pytest.approx(np.log(4))
  # At a temperature of 1/2 the probabilities are squared and normalised again.
  cold = distillation_loss(student, teacher, kind="soft", temperature=0.5)
  p, q = np.array([1, 4, 1]) / 6, np.array([4, 1, 1]) / 6
  assert cold[0] == pytest.approx(0.25 * np.sum(p * np.log(p / q)) / 3, rel=1e-6)
