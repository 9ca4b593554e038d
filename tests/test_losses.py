"""Losses against hand-computed answers."""

import jax.numpy as jnp
import numpy as np
import pytest

from gfnet_jax.losses import cross_entropy, distillation_loss


def test_cross_entropy_by_hand():
  logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  assert cross_entropy(logits, jnp.array([[0.0, 1.0, 0.0]]))[0] == pytest.approx(np.log(4))
  soft = cross_entropy(logits, jnp.array([[0.5, 0.5, 0.0]]))[0]
  assert soft == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(4))


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
