"""What a config for one's own photos leaves open, and what is then chosen."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
from helpers import random_model
from hypothesis import given
from hypothesis import strategies as st

import gfnet_jax
from configs.photos import get_config
from gfnet_jax.checkpoints.model import save_model
from gfnet_jax.config_files import default_workdir
from gfnet_jax.data.on_device.mixing import Mixing
from gfnet_jax.errors import UserError
from gfnet_jax.sharding import check_batch_size
from gfnet_jax.training.choices import (
  advise_batch,
  choose_as_before,
  choose_from_data,
  choose_model,
  fitting_batch_size,
)
from gfnet_jax.training.config_rules import check_config, check_groups, flatten
from gfnet_jax.training.same_run import check_same_run


@pytest.mark.parametrize("config", ["photos", "transfer"])
def test_the_work_directory_depends_on_the_folder(config, monkeypatch, tmp_path):
  from configs import photos, transfer

  config = {"photos": photos, "transfer": transfer}[config].get_config()
  beginning = config.name.partition("-")[0]
  for name, expected in (("a/{pets}/", "{pets}"), ("../x", "x"), ("/", "root"), ("a/..", None)):
    config.data.name = name
    monkeypatch.chdir(tmp_path)
    expected = expected or tmp_path.name
    assert str(default_workdir(config)) == f"runs/{beginning}-{expected}"


@given(st.integers(1, 10_000), st.integers(1, 16), st.integers(1, 4))
def test_chosen_batches_work(count, devices, parts):
  config = get_config()
  config.optimizer.accumulate_steps = parts
  size = fitting_batch_size(count, devices * parts)
  assert size % math.lcm(2, devices * parts) == 0
  assert size <= max(64, 2 * devices * parts)
  if size > count:
    assert size == math.lcm(2, devices * parts), "the smallest that works"
    return
  choose_from_data(config, count, devices)
  check_config(config)
  mesh = SimpleNamespace(size=devices)
  check_batch_size(config.data.batch_size, parts, mesh)
  check_groups(config, mesh)
  Mixing(num_classes=2, **config.mixing)
  config.data.batch_size = config.mixing.group_size = 512
  advice = advise_batch(config, count, devices).removeprefix("choose ").partition(",")[0]
  for flag in advice.split():
    name, _, value = flag.removeprefix("--config.").partition("=")
    config.update_from_flattened_dict({name: json.loads(value)})
  check_batch_size(config.data.batch_size, parts, mesh)
  check_groups(config, mesh)
  Mixing(num_classes=2, **config.mixing)
  assert config.data.batch_size <= count


def test_other_configs_say_what_fits_a_small_folder(photos, in_process, tmp_path):
  for name in ("train", "val"):
    shutil.copytree(photos, tmp_path / "data" / name)
  code, _, errors = in_process(
    *("train.py", "--config", "configs/transfer.py:folder", "--workdir", tmp_path / "run"),
    f"--config.data.name={tmp_path / 'data'}",
  )
  assert (code, errors.count("\n")) == (2, 1)
  assert errors.startswith(
    "error: the training split holds 30 images, fewer than one batch of 512; choose "
    "--config.data.batch_size=16 --config.mixing.group_size=2, or configs/photos.py"
  )


@pytest.mark.parametrize(
  ("count", "batch_size", "epochs"), [(17, 8, 80.0), (96, 16, 70.0), (4000, 64, 20.0)]
)
def test_epochs_and_batches_by_the_number_of_images(count, batch_size, epochs, capsys):
  config = get_config()
  choose_from_data(config, count, 1)
  assert (config.data.batch_size, config.num_epochs) == (batch_size, epochs)
  assert config.mixing.group_size == batch_size
  assert (config.data.reading.workers > 0) == (count == 4000)
  printed = capsys.readouterr().out
  assert printed.startswith(
    f"Chosen for {count} images (--config.FIELD=VALUE changes any of these)"
  )
  assert f"data.batch_size={batch_size}, " in printed


@pytest.mark.parametrize(
  ("weights", "frozen", "rate", "epochs"),
  [("", False, 2e-3, 70.0), ("gfnet-xs", False, 2e-4, 40.0), ("gfnet-xs", True, 5e-3, 40.0)],
)
def test_trained_weights_are_changed_less_and_for_fewer_epochs(weights, frozen, rate, epochs):
  config = get_config()
  config.init_checkpoint, config.freeze_trunk = weights, frozen
  choose_from_data(config, 96, 1)
  assert (config.optimizer.learning_rate, config.num_epochs) == (rate, epochs)


def test_what_is_given_is_not_chosen(capsys):
  config = get_config()
  config.update(num_epochs=3.0)
  config.data.batch_size = 10
  choose_from_data(config, 96, 1)
  assert (config.num_epochs, config.data.batch_size, config.mixing.group_size) == (3.0, 10, 10)
  assert "num_epochs" not in capsys.readouterr().out


@given(st.integers(16, 5000), st.integers(1, 16), st.integers(1, 16))
def test_a_run_continues_with_what_it_chose(count, devices, devices_now):
  began, now = get_config(), get_config()
  choose_model(began)
  choose_from_data(began, count, devices)
  before = json.loads(json.dumps(began.to_dict()))
  now.num_epochs = 2 * began.num_epochs
  choose_as_before(now, before)
  choose_model(now)
  choose_from_data(now, count, devices_now)
  check_same_run(flatten(before), flatten(json.loads(json.dumps(now.to_dict()))), "run", "")
  assert now.optimizer.warmup_epochs == began.optimizer.warmup_epochs
  assert now.eval_every_epochs == 2 * began.eval_every_epochs, "may change, and follows today's"


@given(st.integers(16, 5000))
def test_the_number_of_devices_chooses_nothing_that_matters(count):
  chosen = []
  for devices in (1, 2, 4):
    chosen.append(get_config())
    choose_from_data(chosen[-1], count, devices)
  assert chosen[0].to_dict() == chosen[1].to_dict() == chosen[2].to_dict()


def test_an_odd_batch_is_refused_by_its_own_name_where_images_are_mixed():
  config = get_config()
  config.data.batch_size = 25
  choose_from_data(config, 100, 1)
  with pytest.raises(UserError, match="batch_size is 25, expected an even number, as images"):
    check_groups(config, SimpleNamespace(size=1))
  config.mixing.mixup_alpha = 0.0
  check_groups(config, SimpleNamespace(size=1))
  Mixing(num_classes=2, **config.mixing)


def test_only_automatic_configs_may_leave_fields_open():
  config = get_config()
  check_config(config, may_be_open=True)
  with pytest.raises(UserError, match="is None, expected "):  # in a tool that has no data
    check_config(config)
  config.automatic = False
  with pytest.raises(UserError, match="is None, expected "):
    check_config(config, may_be_open=True)


def test_the_network_is_that_of_the_weights(tmp_path):
  saved = dict(name="gfnet-h-ti", image_size=160, embed_dims=(8, 8), depths=(1, 1), patch_size=4)
  model = random_model(lambda: gfnet_jax.create_model(**saved, num_classes=5))
  save_model(tmp_path / "run", model, saved | {"num_classes": 5})
  config = get_config()
  config.init_checkpoint = str(tmp_path / "run")
  choose_model(config)
  found = {name: value for name, value in config.model.items() if value is not None}
  assert found["image_size"] == 128
  assert {name: found[name] for name in ("name", "patch_size", "num_classes")} == {
    "name": "gfnet-h-ti",
    "patch_size": 4,
    "num_classes": 0,
  }
  assert (list(found["embed_dims"]), list(found["depths"])) == ([8, 8], [1, 1])


def test_a_small_network_without_weights():
  config = get_config()
  choose_model(config)
  assert (config.model.image_size, config.model.embed_dim, config.model.depth) == (64, 64, 4)


def test_a_frozen_trunk_needs_weights():
  config = get_config()
  config.freeze_trunk = True
  with pytest.raises(UserError, match="freeze_trunk is True, but nothing was trained before"):
    check_config(config, may_be_open=True)
