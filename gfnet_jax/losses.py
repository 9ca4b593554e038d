"""Cross-entropy with soft targets, and knowledge distillation."""

import jax
import jax.numpy as jnp

KINDS = ("soft", "hard")  # of distillation


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """-sum_k targets_k log softmax(logits)_k of every sample.

  Args:
    logits: (batch, num_classes), float32 or float64.
    targets: (batch, num_classes), distributions of the same type.

  Returns:
    (batch,), of that type.
  """
  return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def distillation_loss(
  logits: jax.Array, teacher_logits: jax.Array, *, kind: str, temperature: float
) -> jax.Array:
  """How far a student is from its teacher (official: DeiT's losses.py).

  Args:
    logits: (batch, num_classes), float32 or float64, of the student.
    teacher_logits: (batch, num_classes), of the same type.
    kind: "soft" is T^2 KL(teacher || student) / num_classes at temperature T; "hard" is
      the cross-entropy with the class that the teacher prefers.
    temperature: T.

  Returns:
    (batch,), of that type.
  """
  num_classes = logits.shape[-1]
  if kind == "hard":
    return cross_entropy(
      logits, jax.nn.one_hot(teacher_logits.argmax(-1), num_classes, dtype=logits.dtype)
    )
  teacher = jax.nn.log_softmax(teacher_logits / temperature)
  student = jax.nn.log_softmax(logits / temperature)
  divergence = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
  return divergence * temperature**2 / num_classes


def pixel_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-log softmax(logits) of every pixel's label; 0 where it has none.

  The mean over all pixels, those without a label among them, is mmsegmentation's loss.

  Args:
    logits: (batch, height, width, num_classes), float32 or float64.
    labels: (batch, height, width), int32; negative for no class.

  Returns:
    (batch, height, width), of the logits' type.
  """
  classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)[None, None, None]
  picked = jnp.where(labels[..., None] == classes, logits, 0).sum(-1)  # its gradient: no scatter
  return jnp.where(labels >= 0, jax.nn.logsumexp(logits, axis=-1) - picked, 0)
