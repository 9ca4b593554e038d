"""Schedule, decay groups, clipping and AdamW against their formulas."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

import gfnet_jax
from gfnet_jax.errors import UserError
from gfnet_jax.models.functional import split
from gfnet_jax.training.optimizer import (
  clip_by_global_norm,
  decays,
  make_optimizer,
  make_schedule,
  warmup_cosine,
)

# (tensors, elements) with and without decay, counted on the official implementation.
DECAY_GROUPS = {
  "gfnet-ti": (38, 77, 7_432_192, 79_592),
  "gfnet-xs": (38, 77, 15_866_880, 118_888),
  "gfnet-s": (59, 119, 24_726_528, 143_080),
  "gfnet-b": (59, 119, 42_930_176, 190_440),
  "gfnet-h-ti": (62, 141, 14_834_688, 250_408),
  "gfnet-h-s": (62, 141, 31_787_520, 375_112),
  "gfnet-h-b": (113, 260, 53_303_808, 440_392),
}


@pytest.mark.parametrize("name", gfnet_jax.list_models())
def test_decay_groups(name):
  _, params = split(nnx.eval_shape(lambda: gfnet_jax.create_model(name)))
  sizes = {True: [], False: []}
  for parameter, value in params.items():
    sizes[decays(parameter)].append(int(np.prod(value.shape)))
  assert DECAY_GROUPS[name] == (
    len(sizes[True]),
    len(sizes[False]),
    sum(sizes[True]),
    sum(sizes[False]),
  )


def test_warmup_and_cosine_by_hand():
  schedule = warmup_cosine(peak=1.0, warmup_steps=4, num_steps=12, initial=0.2, final=0.1)
  assert [schedule(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
  assert schedule(8) == pytest.approx(0.55)  # half-way down
  assert schedule(12) == pytest.approx(0.1)
  assert schedule(6) == pytest.approx(0.1 + 0.45 * (1 + np.sqrt(0.5)))


def test_a_warmup_longer_than_the_run_is_refused():
  config = ml_collections.ConfigDict(dict(num_epochs=3, optimizer=dict(warmup_epochs=5)))
  with pytest.raises(UserError, match="warmup_epochs is 5, expected 0 to num_epochs = 3"):
    make_schedule(config, steps_per_epoch=10)


def test_clipping_is_the_official_one():
  clip = clip_by_global_norm(1.0)
  gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
  clipped, _ = clip.update(gradients, clip.init(gradients))
  assert clipped["b"][0] == pytest.approx(4 / (5 + 1e-6), rel=1e-7)
  small = {"a": jnp.array([0.3]), "b": jnp.array([0.4])}
  unchanged, _ = clip.update(small, clip.init(small))
  assert unchanged == small


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@jax.numpy_dtype_promotion("standard")  # optax multiplies integers and floats
def test_adamw_step_by_step(clip_norm):
  """Against the formulas of the paper in float64, with decay on the kernel only."""
  settings = dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.05, clip_norm=clip_norm)
  optimizer = make_optimizer(ml_collections.ConfigDict(settings))
  rng = np.random.default_rng(0)
  expected = {"fc.kernel": rng.standard_normal(5), "fc.bias": rng.standard_normal(5)}
  params = {name: jnp.asarray(value, jnp.float32) for name, value in expected.items()}
  state = optimizer.init(params)
  first = {name: np.zeros(5) for name in expected}
  second = {name: np.zeros(5) for name in expected}
  for step in range(1, 6):
    learning_rate = 0.1 / step
    gradients = {name: rng.standard_normal(5) for name in expected}
    updates, state = optimizer.update(
      {name: jnp.asarray(value, jnp.float32) for name, value in gradients.items()}, state, params
    )
    params = {name: params[name] - learning_rate * updates[name] for name in params}
    norm = np.sqrt(sum(np.sum(value**2) for value in gradients.values()))
    factor = min(1, clip_norm / (norm + 1e-6)) if clip_norm else 1
    for name, gradient in gradients.items():
      gradient = gradient * factor
      first[name] = 0.9 * first[name] + 0.1 * gradient
      second[name] = 0.999 * second[name] + 0.001 * gradient**2
      if name.endswith("kernel"):
        expected[name] = expected[name] * (1 - learning_rate * 0.05)
      mean, variance = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
      expected[name] = expected[name] - learning_rate * mean / (np.sqrt(variance) + 1e-8)
  for name in params:
    # 1 - 0.999**t loses up to 6e-5 of itself in float32, so an update of 0.1 up to 3e-6.
    np.testing.assert_allclose(params[name], expected[name], atol=5e-6)
