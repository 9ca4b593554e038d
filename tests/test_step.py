"""The compiled training step: collectives on eight devices, averages, steps that go wrong."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import collectives, random_model

import gfnet_jax
from configs.digits import get_config
from gfnet_jax.inference.classification import make_eval_step
from gfnet_jax.models.functional import split
from gfnet_jax.sharding import make_mesh, shard_state, split_batch
from gfnet_jax.training import metrics
from gfnet_jax.training.objective import make_objective
from gfnet_jax.training.optimizer import make_optimizer
from gfnet_jax.training.step import init_state, make_train_step

pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")

SMALL = {
  "gfnet-ti": dict(patch_size=8, embed_dim=16, depth=2, drop_path_rate=0.5),
  "gfnet-h-ti": dict(embed_dims=(8, 8, 16, 16), depths=(1, 1, 2, 1), drop_path_rate=0.5),
}


@pytest.fixture(autouse=True)
def _standard_promotion():
  with jax.numpy_dtype_promotion("standard"):  # optax multiplies integers and floats
    yield


def full_recipe(**changes):
  """Everything on: mixup and CutMix, averages, two parts to a batch."""
  config = recipe(**changes)
  config.mixing.update(mixup_alpha=0.8, cutmix_alpha=1.0, group_size=2)
  return config


def boxes_recipe(**changes):
  """CutMix with boxes of equally likely sides: Beta, of all else, is slow to compile."""
  config = recipe(**changes)
  config.mixing.update(cutmix_minmax=(0.2, 0.8), group_size=2)
  return config


def recipe(**changes):
  """All but mixing, whose random draws are half of what there is to compile."""
  config = get_config()
  config.mixing.update(mixup_alpha=0.0, cutmix_alpha=0.0)
  config.ema_decay = 0.9
  config.optimizer.accumulate_steps = 2
  config.update(changes)
  return config


class Training:
  """The steps of a small model on the mesh of all devices."""

  def __init__(self, config, name="gfnet-ti", **changes):
    def make_model():
      options = SMALL[name] | changes
      return gfnet_jax.create_model(name, image_size=32, num_classes=10, **options)

    self.mesh = make_mesh()
    optimizer = make_optimizer(config.optimizer)
    structure, shapes = split(nnx.eval_shape(make_model))

    def init(params):
      return init_state(params, optimizer, config)

    self.shardings = shard_state(jax.eval_shape(init, shapes), self.mesh, config.sharding)
    with jax.set_mesh(self.mesh):
      params = split(random_model(make_model, 0.02))[1]
      self.state = jax.jit(init, out_shardings=self.shardings)(params)
    objective = make_objective(structure, config)
    self.step = make_train_step(objective, optimizer, config, self.mesh, self.shardings)
    self.eval_step = make_eval_step(structure, self.mesh)

  def batch(self, seed=0):
    rng = np.random.default_rng(seed)
    batch = {
      "image": rng.integers(0, 256, (32, 32, 32, 3), np.uint8),
      "label": rng.integers(0, 10, 32).astype(np.int32),
      "bad": np.zeros(32, bool),
    }
    return jax.device_put(batch, split_batch(self.mesh))

  def run(self, learning_rates):
    with jax.set_mesh(self.mesh):
      for i, learning_rate in enumerate(learning_rates):
        self.state = self.step(self.state, {}, self.batch(i), learning_rate)

  # Its passes over the program are those of users; only the machine code is not optimised.
  def train_hlo(self) -> str:
    with jax.set_mesh(self.mesh):
      return self.step.lower(self.state, {}, self.batch(), jnp.float32(0)).compile().as_text()

  def eval_hlo(self) -> str:
    with jax.set_mesh(self.mesh):
      return self.eval_step.lower(self.state.params, self.batch()).compile().as_text()


def elements(shape: str) -> int:
  return int(np.prod([int(n) for n in re.findall(r"\d+", shape.partition("[")[2])] or [1]))


@pytest.mark.parametrize(
  ("name", "backend", "make_config"),
  [
    ("gfnet-ti", "fft", full_recipe),
    ("gfnet-ti", "dense", boxes_recipe),
    pytest.param("gfnet-ti", "dense", full_recipe, marks=pytest.mark.slow),
    # Two products, as dense is one.
    pytest.param("gfnet-ti", "separable", full_recipe, marks=pytest.mark.slow),
    pytest.param("gfnet-h-ti", "auto", full_recipe, marks=pytest.mark.slow),
  ],
)
def test_only_gradients_and_metrics_cross_devices(name, backend, make_config):
  training = Training(make_config(), name, backend=backend)
  train, evaluate = collectives(training.train_hlo()), collectives(training.eval_hlo())
  assert set(train) == {"all-reduce"}
  parameters = sum(value.size for value in training.state.params.values())
  reduced = sum(map(elements, train["all-reduce"]))
  # Loss, norm and accuracy are a few scalars; the compiler may derive the gradient of one
  # bias from another's.
  assert 0.9 * parameters <= reduced <= parameters + 64
  assert set(evaluate) == {"all-reduce"}
  assert sum(map(elements, evaluate["all-reduce"])) <= 64


@pytest.mark.parametrize(
  "make_config", [boxes_recipe, pytest.param(full_recipe, marks=pytest.mark.slow)]
)
def test_with_fsdp_only_parameters_are_gathered(make_config):
  training = Training(make_config(sharding="fsdp"))
  train = collectives(training.train_hlo())
  assert set(train) <= {"all-reduce", "all-gather", "reduce-scatter"}
  shapes = {tuple(value.shape) for value in training.state.params.values()}
  gathered = {tuple(map(int, re.findall(r"\d+", s.partition("[")[2]))) for s in train["all-gather"]}
  assert gathered <= shapes
  kernel = training.state.params["blocks.0.mlp.fc1.kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size // 8


@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fsdp_computes_the_same(scan):
  replicated, sharded = (
    Training(recipe(sharding=sharding), scan=scan) for sharding in ("replicated", "fsdp")
  )
  for training in (replicated, sharded):
    training.run([1e-3] * 3)
  for name, value in replicated.state.params.items():
    np.testing.assert_allclose(sharded.state.params[name], value, atol=2e-5, err_msg=name)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
  """Without drop path, whose masks are drawn for each part; images are mixed before."""
  states = []
  for parts in (1, 4):
    config = boxes_recipe()
    config.optimizer.accumulate_steps = parts
    training = Training(config, drop_path_rate=0.0, depth=1)
    training.run([1e-3])
    states.append(training.state)
  one, four = (metrics.means(jax.device_get(state.metrics)) for state in states)
  for name, value in one.items():
    assert four[name] == pytest.approx(float(value), rel=1e-5)
  moments = (state.optimizer[1].mu for state in states)
  for whole, parted in zip(*(moment.values() for moment in moments), strict=True):
    np.testing.assert_allclose(parted, whole, atol=1e-7)


def test_averages_follow_the_parameters():
  training = Training(recipe(), depth=1)
  expected = {name: np.asarray(value) for name, value in training.state.params.items()}
  for _ in range(3):
    training.run([1e-2])
    for name, value in training.state.params.items():
      expected[name] = expected[name] * 0.9 + (1 - 0.9) * np.asarray(value)
  for name, value in training.state.ema.items():
    np.testing.assert_allclose(value, expected[name], atol=1e-6)


def test_a_frozen_trunk_stays_and_its_head_learns_as_ever():
  """The first step of the head does not depend on whether the trunk moves as well."""
  states, flops = {}, {}
  for frozen in (False, True):
    config = recipe(freeze_trunk=frozen)
    config.optimizer.update(clip_norm=0.0, accumulate_steps=1)
    training = Training(config)
    before = jax.tree.map(np.asarray, training.state.params)
    flops[frozen] = flops_of(training)
    training.run([1e-3])
    states[frozen] = training.state
  state = states[True]
  for name, value in before.items():
    if name.startswith("head."):
      np.testing.assert_allclose(
        state.params[name], states[False].params[name], rtol=1e-5, atol=1e-7, err_msg=name
      )
      assert (np.asarray(state.params[name]) != value).any()
      assert (np.asarray(state.ema[name]) != value).any()
    else:
      np.testing.assert_array_equal(state.params[name], value, err_msg=name)
      np.testing.assert_array_equal(state.ema[name], value, err_msg=name)
  assert state.optimizer[1].mu.keys() == {"head.kernel", "head.bias"}
  assert flops[True] < 0.5 * flops[False], "no gradient of the trunk is computed"


def flops_of(training) -> float:
  with jax.set_mesh(training.mesh):  # with arguments as those of `run`, traced once for both
    step = training.step.lower(training.state, {}, training.batch(), 0.0)
  return step.cost_analysis()["flops"]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_step_that_is_not_finite_changes_nothing(policy):
  training = Training(recipe(on_nonfinite=policy), depth=1)
  training.run([1e-3])
  params = dict(training.state.params)
  params["head.bias"] = params["head.bias"] * jnp.nan
  before = jax.tree.map(np.asarray, training.state.params)
  good_bias = jnp.copy(training.state.params["head.bias"])
  training.state = training.state.replace(params=params)
  training.run([1e-3])
  assert int(training.state.bad_steps) == (1 if policy == "skip" else 0)
  assert int(training.state.frozen) == (0 if policy == "skip" else 1)
  assert int(training.state.step) == (2 if policy == "skip" else 1)
  params = dict(training.state.params) | {"head.bias": good_bias}
  for name, value in before.items():
    np.testing.assert_array_equal(params[name], value)
  training.state = training.state.replace(params=params)
  training.run([1e-3])
  moved = not np.array_equal(training.state.params["head.kernel"], before["head.kernel"])
  assert moved == (policy == "skip"), "a run that is to stop stays where it was"
  assert np.isfinite(metrics.means(jax.device_get(training.state.metrics))["train_loss"])
