"""Schedule, decay groups, clipping and AdamW against their formulas."""

import importlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx
from helpers import ROOT

import gfnet_jax
from configs import transfer
from gfnet_jax.errors import UserError
from gfnet_jax.models.functional import split
from gfnet_jax.training.choices import choose_from_data
from gfnet_jax.training.optimizer import (
  clip_by_global_norm,
  cosine_schedule,
  decays,
  make_optimizer,
  make_schedule,
  official_schedule,
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
  schedule = cosine_schedule(peak=1.0, warmup_steps=4, num_steps=12, initial=0.2, final=0.1)
  assert [schedule(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
  assert schedule(8) == pytest.approx(0.55)  # half-way down
  assert schedule(12) == pytest.approx(0.1)
  assert schedule(6) == pytest.approx(0.1 + 0.45 * (1 + np.sqrt(0.5)))


def test_official_learning_rates_of_imagenet():
  """Rates printed by the official implementation: 8 x 128 images, 300 epochs."""
  schedule = official_schedule(
    peak=5e-4 * (8 * 128) / 512, warmup_epochs=5, num_epochs=300, initial=1e-6, final=1e-5
  )
  expected = {
    0: 9.9999999999999995e-07,
    1: 9.9999999999999995e-07,
    2: 0.00020080000000000003,
    3: 0.00040060000000000009,
    4: 0.00060040000000000017,
    5: 0.00080020000000000015,
    6: 0.00099932161970351405,
    7: 0.00099902323057199436,
    8: 0.00099867066622610673,
    9: 0.00099826396532850473,
    10: 0.00099780317247852453,
    100: 0.00075697550079643385,
    150: 0.0005101835331375417,
    200: 0.00026200264196050532,
    250: 7.8932696633047955e-05,
    298: 1.0244252618962858e-05,
    299: 1.0108561679951479e-05,
  }
  for epoch, rate in expected.items():
    assert schedule(epoch) == pytest.approx(rate, rel=1e-12, abs=0)
  for epoch in range(1, 300):  # the formulas once more, in NumPy
    t = epoch - 1
    warm = 1e-6 + t * (1e-3 - 1e-6) / 5
    cool = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + np.cos(np.pi * t / 300))
    assert schedule(epoch) == pytest.approx(warm if t < 5 else cool, rel=1e-12, abs=0)


def test_official_learning_rates_of_the_other_recipes():
  fine_tuning = official_schedule(
    peak=5e-6, warmup_epochs=5, num_epochs=30, initial=1e-6, final=5e-6
  )
  expected = [1e-6, 1e-6, 1.8e-6, 2.6e-6, 3.4e-6, 4.2e-6, 5e-6, 5e-6]
  assert [fine_tuning(epoch) for epoch in range(8)] == pytest.approx(expected, rel=1e-12)
  cars = official_schedule(peak=1e-4, warmup_epochs=5, num_epochs=1000, initial=1e-6, final=1e-5)
  expected = [1e-6, 1e-6, 2.08e-5, 4.06e-5, 6.04e-5, 8.02e-5, 9.999444846e-5, 9.999200586e-5]
  assert [cars(epoch) for epoch in range(8)] == pytest.approx(expected, rel=1e-9)
  cold = official_schedule(peak=1.0, warmup_epochs=0, num_epochs=2, initial=1e-6, final=0)
  assert [cold(epoch) for epoch in range(2)] == [1.0, 1.0]


def test_the_official_schedule_changes_with_the_epoch():
  config = ml_collections.ConfigDict(
    dict(
      num_epochs=4,
      optimizer=dict(
        schedule="official",
        reference_batch_size=0,
        warmup_epochs=2,
        learning_rate=1.0,
        warmup_learning_rate=0.2,
        final_learning_rate=0.0,
      ),
    )
  )
  schedule = make_schedule(config, steps_per_epoch=2.5)
  rates = [0.2] * 5 + [0.6] * 3 + [0.5] * 2  # epochs begin at steps 0, 2.5, 5 and 7.5
  assert [schedule(step) for step in range(10)] == pytest.approx(rates)
  config.data = ml_collections.ConfigDict(dict(batch_size=128))
  config.optimizer.update(reference_batch_size=512)
  assert make_schedule(config, steps_per_epoch=2.5)(9) == pytest.approx(0.125)
  config.optimizer.schedule = "linear"
  with pytest.raises(UserError, match="expected one of official, cosine"):
    make_schedule(config, steps_per_epoch=2.5)


def test_a_warmup_longer_than_the_run_is_refused():
  config = ml_collections.ConfigDict(dict(num_epochs=3, optimizer=dict(warmup_epochs=5)))
  with pytest.raises(UserError, match="warmup_epochs is 5, expected 0 to num_epochs = 3"):
    make_schedule(config, steps_per_epoch=10)


CONFIGS = {
  f"{name}:{argument}" if argument else name: (name, argument)
  for name, arguments in {
    "digits": [""],
    "ablation": ["attention"],
    "photos": [""],
    "imagenet": ["gfnet-xs", "gfnet-h-b"],
    "imagenet_384": ["gfnet-xs"],
    "transfer": [*transfer.DATASETS, "digits"],
    "segmentation": ["gfnet-h-b", "shapes"],
    "domains": ["pacs", "digits"],
  }.items()
  for argument in arguments
}


def config_of(name):
  module, argument = CONFIGS[name]
  module = importlib.import_module(f"configs.{module}")
  config = module.get_config(argument) if argument else module.get_config()
  choose_from_data(config, 96, 1)
  return config


def rates_of(config):
  steps_per_epoch = 4
  schedule = make_schedule(config, steps_per_epoch)
  return np.array([schedule(step) for step in range(round(config.num_epochs * steps_per_epoch))])


def test_no_config_is_left_out():
  names = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"default", "__init__"}
  assert names == {name for name, _ in CONFIGS.values()}


@pytest.mark.parametrize("name", CONFIGS)
def test_no_schedule_rises_at_the_batch_of_its_config(name, capsys):
  config = config_of(name)
  capsys.readouterr()
  rates = rates_of(config)
  assert capsys.readouterr().out == ""
  peak = rates.argmax()
  assert (np.diff(rates[: peak + 1]) >= 0).all()
  assert (np.diff(rates[peak:]) <= 0).all()
  assert rates[-1] <= rates[peak]


@pytest.mark.parametrize("batch_size", [8, 24, 64])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_rate_above_the_peak_of_a_small_batch_is_said_once(name, batch_size, capsys):
  config = config_of(name)
  config.data.batch_size = batch_size
  capsys.readouterr()
  rates = rates_of(config)
  optimizer, printed = config.optimizer, capsys.readouterr().out
  peak = optimizer.learning_rate
  if optimizer.reference_batch_size:
    peak *= batch_size / optimizer.reference_batch_size
  rises = rates[-1] > peak * (1 + 1e-9) or rates[0] > peak * (1 + 1e-9)
  assert printed.count("warning") == printed.count("\n") == rises
  if rises:
    assert f"above its peak of {peak:.3g}" in printed
    assert f"{optimizer.final_learning_rate:.3g}" in printed
    # What it advises works.
    optimizer.scale_all_rates = True
    rates_of(config)
    assert capsys.readouterr().out == ""


def test_which_configs_warn_of_small_batches(capsys):
  warned = set()
  for name in CONFIGS:
    config = config_of(name)
    config.data.batch_size = 24
    capsys.readouterr()
    make_schedule(config, 4)
    if capsys.readouterr().out:
      warned.add(name)
  assert warned == {"imagenet_384:gfnet-xs", "transfer:cars196"}, "those of official scripts"


def test_the_warning_of_a_rising_rate(capsys):
  config = config_of("imagenet_384:gfnet-xs")
  config.data.batch_size = 64
  make_schedule(config, 4)
  assert capsys.readouterr().out == (
    "warning: the learning rate begins the warm-up at 1e-06 and ends at 5e-06, above its peak of "
    "6.25e-07; lower optimizer.warmup_learning_rate and optimizer.final_learning_rate, or set "
    "optimizer.scale_all_rates=True\n"
  )
  config.optimizer.update(warmup_epochs=0.0, final_learning_rate=0.0)
  make_schedule(config, 4)
  assert capsys.readouterr().out == ""


def test_all_rates_are_scaled_to_the_batch():
  config = config_of("transfer:folder")
  config.data.batch_size = 24
  small = rates_of(config)
  config.data.batch_size = 512
  large = rates_of(config)
  np.testing.assert_allclose(small, large * 24 / 512, rtol=1e-12)
  assert large.max() == pytest.approx(1e-4, rel=1e-3)
  assert large[0] == 1e-6
  config.optimizer.scale_all_rates = False
  np.testing.assert_array_equal(rates_of(config), large)


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
