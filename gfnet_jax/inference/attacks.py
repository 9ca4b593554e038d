"""Adversarial attacks: images changed by very little, so that a network errs.

FGSM, the fast gradient sign method (arXiv:1412.6572), and PGD, projected gradient descent
(arXiv:1706.06083): white box, untargeted, bounded by the largest change of a colour value (L-inf).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gfnet_jax.data.imagenet import MEAN, STD
from gfnet_jax.errors import UserError
from gfnet_jax.losses import cross_entropy
from gfnet_jax.names import look_up

MOST_STEPS = 10_000


class Attack(NamedTuple):
  """An attack and its budget. Colour values are counted as in files, from 0 to 255.

  Attributes:
    name: for the results.
    eps: the largest change of a colour value.
    step: by which every step changes it.
    steps: of gradient ascent.
    random_start: whether the first change is random, uniform in [-eps, eps] for every value.
    seed: of the random start; the start of an image depends on it and the image's index alone.
  """

  name: str
  eps: float
  step: float
  steps: int
  random_start: bool
  seed: int = 0

  def __str__(self) -> str:
    steps = f"{self.steps} step{'s' if self.steps > 1 else ''} of {self.step:g}/255"
    start = f", random start with seed {self.seed}" if self.random_start else ""
    return f"{self.name} (eps {self.eps:g}/255, {steps}{start})"


# The budgets of Robust Vision Transformer's evaluation (arXiv:2105.07926, its engine.py).
ATTACKS = {
  "fgsm": Attack("fgsm", eps=1.0, step=1.0, steps=1, random_start=False),
  "pgd": Attack("pgd", eps=1.0, step=0.5, steps=5, random_start=True),
}


def make_attack(
  name: str,
  *,
  eps: float | None = None,
  step: float | None = None,
  steps: int | None = None,
  seed: int = 0,
) -> Attack:
  """An attack with another budget than the usual one.

  Args:
    name: one of ATTACKS.
    eps: the largest change of a colour value, of 255.
    step: the change of every step, of 255; by default it is in proportion to eps.
    steps: how many.
    seed: of the random start.

  Raises:
    UserError: for an unknown name, or numbers that make no attack.
  """
  usual = look_up("attack", name, ATTACKS)
  eps = usual.eps if eps is None else eps
  step = usual.step * eps / usual.eps if step is None else step
  steps = usual.steps if steps is None else steps
  for what, value in (("eps", eps), ("step", step)):
    if not 0 <= value <= 255:
      raise UserError(f"the attack's {what} is {value:g}, expected 0 to 255 (of 255); choose one")
  if not 1 <= steps <= MOST_STEPS:
    raise UserError(f"the attack has {steps} steps, expected 1 to {MOST_STEPS}; choose as many")
  if not 0 <= seed < 2**32:
    raise UserError(f"the attack's seed is {seed}, expected 0 to {2**32 - 1}; choose one")
  return usual._replace(eps=float(eps), step=float(step), steps=steps, seed=seed)


def attack_images(
  attack: Attack,
  compute_logits: Callable[[jax.Array], jax.Array],
  images: jax.Array,
  labels: jax.Array,
  indices: jax.Array,
) -> jax.Array:
  """The images after an attack, from its random start if it has one.

  Args:
    attack: of `make_attack`.
    compute_logits: from normalised images to logits (batch, classes).
    images: (batch, H, W, 3), normalised, float32 or float64.
    labels: (batch,), int32: the true classes; an image with a negative one stays near its start.
    indices: (batch,), int32: of the images in their data set.

  Returns:
    As `images`.
  """
  start = None
  if attack.random_start:
    start = draw_starts(attack.seed, indices, images.shape[1:], images.dtype)
  return ascend(attack, compute_logits, images, labels, start)


def draw_starts(
  seed: int, indices: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> jax.Array:
  """Uniform in [-1, 1), (batch, *shape): the same for an image in any batch and on any device."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
  return jax.vmap(lambda key: jax.random.uniform(key, shape, dtype, -1, 1))(keys)


def ascend(
  attack: Attack,
  compute_logits: Callable[[jax.Array], jax.Array],
  images: jax.Array,
  labels: jax.Array,
  start: jax.Array | None,
) -> jax.Array:
  """Steps along the sign of the gradient of the cross-entropy; sign(0) is 0.

  After the start and after every step, the images are clipped to the budget around the originals
  and to what an image can hold, as in the evaluation of Robust Vision Transformer (engine.py).

  Args:
    attack: the budget.
    compute_logits: as for `attack_images`.
    images: (batch, H, W, 3), normalised.
    labels: (batch,), int32.
    start: (batch, H, W, 3): the first change as a fraction of eps, -1 to 1; None for none.

  Returns:
    As `images`.
  """
  mean, std = (np.asarray(values, images.dtype).reshape(1, 1, 1, 3) for values in (MEAN, STD))
  eps, step = attack.eps / 255 / std, attack.step / 255 / std
  lowest = jnp.maximum(images - eps, (0 - mean) / std)
  highest = jnp.minimum(images + eps, (1 - mean) / std)

  def loss(changed: jax.Array) -> jax.Array:
    logits = compute_logits(changed)
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return cross_entropy(logits, targets).sum()  # of each image's own: nothing mixes their signs

  def ascend_once(_, changed: jax.Array) -> jax.Array:
    return jnp.clip(changed + step * jnp.sign(jax.grad(loss)(changed)), lowest, highest)

  first = images if start is None else jnp.clip(images + eps * start, lowest, highest)
  return jax.lax.fori_loop(0, attack.steps, ascend_once, first)
