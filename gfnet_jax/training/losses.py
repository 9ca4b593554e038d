"""Cross-entropy with soft targets."""

import jax
import jax.numpy as jnp


def smooth_one_hot(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
  """Target distributions: 1 - s + s / K for the label, s / K for the other classes.

  Args:
    labels: (batch,), int32.
    num_classes: K.
    smoothing: s in [0, 1].

  Returns:
    (batch, num_classes), float32.
  """
  return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """-sum_k targets_k log softmax(logits)_k of every sample.

  Args:
    logits: (batch, num_classes), float32.
    targets: (batch, num_classes), float32 distributions.

  Returns:
    (batch,), float32.
  """
  return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)
