"""Mixup, CutMix and smoothing against replayed draws and a model of the official loops."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gfnet_jax.data.on_device.erasing import erase
from gfnet_jax.data.on_device.mixing import (
  Draws,
  Mixing,
  cutmix_box,
  draw_mixing,
  lam_of_box,
  mix_images,
  mix_targets,
  partners,
  smooth_targets,
)
from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.errors import UserError

SIZE = 224


def replay_batch_draw(rng, *, new_box=False):
  """The official order of draws in mode 'batch' with the default alphas."""
  rng.rand()  # mixing at all: the probability is 1
  if rng.rand() >= 0.5:
    return "mixup", rng.beta(0.8, 0.8), None
  lam = rng.beta(1.0, 1.0)
  row, column = np.asarray(rng.randint(SIZE)), np.asarray(rng.randint(SIZE))
  edges = cutmix_box(np.asarray(lam), row, column, SIZE, SIZE, new_box=new_box)
  return "cutmix", lam_of_box(edges, SIZE, SIZE), tuple(map(int, edges))


@pytest.mark.parity
def test_golden_draws_of_one_process():
  rng = np.random.RandomState(1)
  assert [replay_batch_draw(rng) for _ in range(4)] == [
    ("mixup", 5.2757466215122114e-05, None),
    ("cutmix", 0.58745216836734693, (44, 224, 0, 115)),
    ("cutmix", 0.77606823979591844, (103, 209, 104, 210)),
    ("mixup", 0.51865476902825403, None),
  ]


@pytest.mark.parity
def test_golden_draws_with_the_new_box():
  rng = np.random.RandomState(1)
  third = [replay_batch_draw(rng, new_box=True) for _ in range(3)][2]
  assert third == ("cutmix", 0.77182318239795922, (103, 210, 104, 211))


@pytest.mark.parity
def test_golden_mixups():
  rng = np.random.RandomState(0)
  assert [replay_batch_draw(rng)[1] for _ in range(6)] == [
    0.5315061016529674,
    0.43652999532664927,
    0.10808802566967791,
    0.5713574670487054,
    0.4316607916384139,
    0.4392792486262075,
  ]


def boxes_by_hand(lam, row, column, height, width, new_box):
  """The rule in plain Python, for one box."""
  h, w = math.trunc(height * math.sqrt(1 - lam)), math.trunc(width * math.sqrt(1 - lam))
  below, right = ((h + 1) // 2, (w + 1) // 2) if new_box else (h // 2, w // 2)
  return (
    max(0, row - h // 2),
    min(height, row + below),
    max(0, column - w // 2),
    min(width, column + right),
  )


@given(
  lam=st.floats(0, 1),
  height=st.integers(1, 300),
  width=st.integers(1, 300),
  where=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
  new_box=st.booleans(),
)
@settings(max_examples=200, derandomize=True)
def test_box_follows_the_rule(lam, height, width, where, new_box):
  row, column = int(where[0] * height), int(where[1] * width)
  edges = cutmix_box(
    np.asarray(lam), np.asarray(row), np.asarray(column), height, width, new_box=new_box
  )
  assert tuple(map(int, edges)) == boxes_by_hand(lam, row, column, height, width, new_box)
  assert 0 <= lam_of_box(edges, height, width) <= 1


def random_draws(rng, batch, height, width, dtype=np.float32):
  lam = rng.uniform(size=batch).astype(dtype)
  top, left = rng.integers(0, height, batch), rng.integers(0, width, batch)
  bottom, right = rng.integers(top, height + 1), rng.integers(left, width + 1)
  box = np.stack([top, bottom, left, right], axis=-1).astype(np.int32)
  return Draws(lam, rng.random(batch) < 0.5, box)


@pytest.mark.parametrize("group_size", [2, 6, 12])
def test_application_equals_a_loop_over_samples(group_size):
  rng = np.random.default_rng(group_size)
  images = rng.standard_normal((12, 9, 7, 3)).astype(np.float32)
  targets = rng.dirichlet(np.ones(5), 12).astype(np.float32)
  draws = random_draws(rng, 12, 9, 7)
  expected_images, expected_targets = images.copy(), targets.copy()
  for i, (lam, cut, (top, bottom, left, right)) in enumerate(zip(*draws, strict=True)):
    first = i // group_size * group_size
    j = first + group_size - 1 - (i - first)
    if cut:
      expected_images[i, top:bottom, left:right] = images[j, top:bottom, left:right]
    else:
      expected_images[i] = images[i] * lam + images[j] * (1 - lam)
    expected_targets[i] = targets[i] * lam + targets[j] * (1 - lam)
  draws = jax.tree.map(jnp.asarray, draws)
  mixed = mix_images(jnp.asarray(images), draws, group_size)
  np.testing.assert_array_equal(mixed, expected_images)
  np.testing.assert_array_equal(
    mix_targets(jnp.asarray(targets), draws.lam, group_size), expected_targets
  )


def test_whole_batch_as_one_group_is_the_official_flip():
  batch = jnp.arange(8 * 2).reshape(8, 2)
  np.testing.assert_array_equal(partners(batch, 8), batch[::-1])


def test_lam_one_changes_nothing():
  images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
  draws = Draws(jnp.ones(4), jnp.zeros(4, bool), jnp.zeros((4, 4), jnp.int32))
  np.testing.assert_array_equal(mix_images(images, draws, 4), images)


def test_smooth_targets_have_the_official_values():
  targets = np.asarray(smooth_targets(jnp.array([3, 999]), 1000, 0.1))
  np.testing.assert_allclose(targets[0, 3], 0.9001, rtol=1e-6)
  np.testing.assert_allclose(targets[0, 4], 1e-4, rtol=1e-6)
  np.testing.assert_allclose(targets.sum(axis=1), 1, atol=2e-5)


def draw(batch=16, height=32, width=48, seed=0, **options):
  mixing = Mixing(num_classes=10, **options)
  drawn = jax.jit(lambda key: draw_mixing(mixing, key, batch, height, width))
  return jax.tree.map(np.asarray, drawn(jax.random.key(seed)))


def test_batch_mode_draws_once_per_group():
  draws = draw(batch=64, group_size=8, mode="batch")
  lam = draws.lam.reshape(8, 8)
  assert (lam == lam[:, :1]).all()
  assert len(np.unique(lam[:, 0])) == 8


def test_pair_mode_draws_once_per_pair():
  draws = draw(batch=64, group_size=8, mode="pair", cutmix_alpha=0.0)
  for values in draws:
    groups = values.reshape(8, 8, -1)
    np.testing.assert_array_equal(groups, groups[:, ::-1])
  assert len(np.unique(draws.lam)) == 32


@pytest.fixture(scope="module")
def many() -> Draws:
  """Enough draws to see their distributions, of images of 1000 x 1000 pixels."""
  options = dict(group_size=8, mode="elem", prob=0.9, switch_prob=0.3)
  return draw(batch=100_000, height=1000, width=1000, **options)


def test_elem_mode_draws_for_every_sample(many):
  blended = many.lam[(many.lam < 1) & ~many.use_cutmix][:64]
  assert len(np.unique(blended)) == 64


@pytest.mark.parametrize("minmax", [None, (0.2, 0.8)])
@pytest.mark.parametrize("new_box", [False, True])
def test_lam_is_the_part_that_the_box_leaves(minmax, new_box):
  draws = draw(
    batch=256, group_size=256, mode="elem", mixup_alpha=0.0, cutmix_minmax=minmax, new_box=new_box
  )
  top, bottom, left, right = draws.box.T
  assert draws.use_cutmix.all()
  assert (top >= 0).all() and (bottom <= 32).all() and (left >= 0).all() and (right <= 48).all()
  np.testing.assert_allclose(draws.lam, 1 - (bottom - top) * (right - left) / (32 * 48), atol=1e-6)
  if minmax:
    assert (bottom - top).min() == 6 and (bottom - top).max() == 24  # [trunc(6.4), trunc(25.6))
    assert (right - left).min() == 9 and (right - left).max() == 37  # [trunc(9.6), trunc(38.4))


def test_draws_follow_their_distributions(many):
  active = many.lam < 1
  # A CutMix box may be empty, so activity shows exactly in mixup alone: 0.9 * 0.7 of all.
  blended = many.lam[active & ~many.use_cutmix]
  assert abs(many.use_cutmix.mean() - 0.9 * 0.3) < 0.005
  assert abs(len(blended) / 100_000 - 0.9 * 0.7) < 0.005
  assert scipy.stats.kstest(blended, scipy.stats.beta(0.8, 0.8).cdf).pvalue > 1e-3


def test_box_centres_and_areas_follow_their_distributions(many):
  """Every sample has a box, also where it is not pasted."""
  top, bottom, left, right = many.box.T
  whole = (top > 0) & (bottom < 1000) & (left > 0) & (right < 1000)
  # A box of side s stays inside with probability (1 - s)^2, where 1 - s^2 is uniform.
  assert abs(whole.mean() - 1 / 6) < 0.01
  assert scipy.stats.kstest((top + bottom)[whole], (left + right)[whole]).pvalue > 1e-3


def test_probability_zero_mixes_nothing():
  images = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
  labels = jnp.arange(8)
  for minmax in (None, (0.2, 0.8)):
    mixing = Mixing(num_classes=10, group_size=8, prob=0.0, cutmix_minmax=minmax)
    mixed, targets = jax.jit(mixing)(images, labels, jax.random.key(1))
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(targets, smooth_targets(labels, 10, 0.1))


def test_without_alphas_only_smooths():
  images, labels = jnp.ones((3, 4, 4, 3)), jnp.arange(3)
  mixing = Mixing(num_classes=4, mixup_alpha=0.0, cutmix_alpha=0.0)
  mixed, targets = mixing(images, labels, jax.random.key(0))
  assert mixed is images
  np.testing.assert_array_equal(targets, smooth_targets(labels, 4, 0.1))


@functools.cache
def preparation(mode, minmax):
  """Erases and mixes; compiled once for all tests that call it on one device."""
  mixing = Mixing(num_classes=10, group_size=4, mode=mode, cutmix_minmax=minmax)

  @jax.jit
  def prepare(images, labels, boxes, key):
    erase_key, mix_key = jax.random.split(key)
    images = erase(normalize(images), boxes, erase_key)
    return mixing(images, labels, mix_key)

  return prepare


def random_batch():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (32, 16, 16, 3), np.uint8)
  labels = rng.integers(0, 10, 32, np.int32)
  boxes = rng.integers(0, 16, (32, 1, 4), np.int32)
  return images, labels, boxes


WAYS = [("batch", None), ("pair", (0.2, 0.8)), ("elem", None)]


@pytest.mark.parametrize("mode, minmax", WAYS)
def test_targets_sum_to_one(mode, minmax):
  for seed in range(5):
    _, targets = preparation(mode, minmax)(*random_batch(), jax.random.key(seed))
    np.testing.assert_allclose(np.asarray(targets).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("mode, minmax", WAYS)
def test_eight_devices_agree_with_one_and_do_not_communicate(mode, minmax):
  prepare = preparation(mode, minmax)
  arguments = (*random_batch(), jax.random.key(5))
  alone = prepare(*arguments)

  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  split, replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
  with jax.set_mesh(mesh):
    step = jax.jit(prepare, in_shardings=(split, split, split, replicated), out_shardings=split)
    compiled = step.lower(*arguments).compile()
  placed = [jax.device_put(x, split) for x in arguments[:3]]
  together = compiled(*placed, jax.device_put(arguments[3], replicated))
  collectives = r"all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"
  assert not re.findall(collectives, compiled.as_text())
  for one, eight in zip(alone, together, strict=True):
    np.testing.assert_allclose(one, eight, atol=1e-6)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(mode="half"), "mixing.mode is 'half'"),
    (dict(group_size=3), "mixing.group_size is 3"),
    (dict(cutmix_minmax=(0.8, 0.2)), "cutmix_minmax"),
  ],
)
def test_wrong_options_are_named(options, message):
  with pytest.raises(UserError, match=message):
    Mixing(num_classes=10, **options)


def test_groups_must_divide_the_batch():
  mixing = Mixing(num_classes=10, group_size=4)
  with pytest.raises(UserError, match="batch of 6 is not a multiple of mixup's group_size 4"):
    mixing(jnp.zeros((6, 8, 8, 3)), jnp.zeros(6, jnp.int32), jax.random.key(0))
