"""Fine-tuning from a checkpoint: another resolution, other classes, fewer epochs."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers import random_model, read_lines
from PIL import Image

import gfnet_jax
from configs.digits import get_config
from gfnet_jax.checkpoints.model import save_model
from gfnet_jax.errors import UserError
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.models.functional import split
from gfnet_jax.sharding import make_mesh
from gfnet_jax.training.initialize import describe_weights, initial_params, load_teacher
from gfnet_jax.training.loop import train

CONFIG = dict(name="gfnet-ti", image_size=64, num_classes=5, embed_dim=16, depth=1)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  directory = tmp_path_factory.mktemp("pretrained") / "run"
  save_model(directory, random_model(lambda: gfnet_jax.create_model(**CONFIG)), CONFIG)
  return directory


def start_from(checkpoint, **changes):
  def make_model():
    return gfnet_jax.create_model(**(CONFIG | changes))

  return initial_params(make_model, str(checkpoint), make_mesh())


def test_parameters_are_those_of_the_checkpoint(pretrained):
  _, saved = split(load_model(pretrained).model)
  for name, value in start_from(pretrained).items():
    np.testing.assert_array_equal(value, saved[name], err_msg=name)


def test_another_number_of_classes_gets_a_fresh_head(pretrained, capsys):
  _, saved = split(load_model(pretrained).model)
  params = start_from(pretrained, num_classes=7)
  assert capsys.readouterr().out == (
    f"Initial weights: {pretrained}, a gfnet-ti, with a new head: 7 classes instead of 5\n"
  )
  assert params["head.kernel"].shape == (16, 7)
  assert np.std(params["head.kernel"]) > 0
  np.testing.assert_array_equal(params["blocks.0.mlp.fc1.kernel"], saved["blocks.0.mlp.fc1.kernel"])


def test_another_size_resizes_filters_and_position_embedding(pretrained):
  params = start_from(pretrained, image_size=(96, 128))
  assert params["blocks.0.filter.complex_weight"].shape == (2, 6, 5, 16)
  assert params["pos_embed"].shape == (6, 8, 16)


@pytest.mark.parametrize(
  ("classes", "image_size", "step", "said"),
  [
    (5, (64, 64), 0, "a gfnet-ti, with its head"),
    (5, (64, 64), 30, "a gfnet-ti of step 30, with its head"),
    (7, (64, 64), 0, "a gfnet-ti, with a new head: 7 classes instead of 5"),
    (5, (96, 128), 0, "a gfnet-ti, resized from 64x64 to 96x128 pixels, with its head"),
  ],
)
def test_what_is_said_of_initial_weights(classes, image_size, step, said):
  before, after = (
    SimpleNamespace(image_size=size, num_classes=count)
    for size, count in (((64, 64), 5), (image_size, classes))
  )
  saved = SimpleNamespace(model=before, config=CONFIG, step=step)
  assert describe_weights(saved, after) == said


def test_another_network_is_refused(pretrained):
  with pytest.raises(UserError, match=r"a gfnet-ti, is not the network of config.model: "):
    start_from(pretrained, depth=2)
  with pytest.raises(UserError, match="no checkpoint in nowhere"):
    start_from("nowhere")


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize("change", [dict(depth=2), dict(embed_dim=8), dict(patch_size=4)])
def test_a_refused_beginning_leaves_nothing_behind(pretrained, tmp_path, change):
  config = get_config()
  config.init_checkpoint = str(pretrained)
  config.model.update(**(dict(embed_dim=16, depth=1) | change))
  with pytest.raises(UserError, match=r"a gfnet-ti, is not the network of config\.model: "):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_teacher_must_know_the_same_classes(pretrained):
  structure, params = load_teacher(str(pretrained), 5, (64, 64), make_mesh())
  assert structure is not None
  assert "head.kernel" in params
  with pytest.raises(UserError, match=r"has 5 classes .* expected the student's 6"):
    load_teacher(str(pretrained), 6, (64, 64), make_mesh())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two classes that differ in colour, as train and val."""
  rng = np.random.default_rng(0)
  directory = tmp_path_factory.mktemp("folder")
  for split_name, count in (("train", 24), ("val", 6)):
    for label, name in enumerate(("blue", "red")):
      (directory / split_name / name).mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
        pixels[..., 2 - 2 * label] //= 4
        Image.fromarray(pixels).save(directory / split_name / name / f"{i}.png")
  return directory


def fine_tune(script, workdir, folder, *flags):
  """Runs configs/transfer.py:folder on a small scale."""
  result = script(
    *("train.py", "--config", "configs/transfer.py:folder", "--workdir", workdir),
    "--config.optimizer.warmup_epochs=1",
    "--config.data.batch_size=16",
    "--config.data.eval_batch_size=16",
    "--config.data.reading.workers=0",
    "--config.mixing.group_size=8",
    "--config.model.name=gfnet-ti",
    "--config.model.image_size=96",
    "--config.model.scan=True",
    f"--config.data.name={folder}",
    "--config.num_epochs=1",
    "--config.log_every_steps=1",
    "--config.precision=default",
    *flags,
  )
  assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_fine_tuning_on_a_folder_of_images(folder, script, tmp_path):
  """From an official file, at another size, with counted classes."""
  official, converted = tmp_path / "gfnet-ti.safetensors", tmp_path / "gfnet-ti"
  save_model(tmp_path / "ours", gfnet_jax.create_model("gfnet-ti"), dict(name="gfnet-ti"))
  for arguments in (("--to-torch", tmp_path / "ours", official), (official, converted)):
    result = script("convert_torch_weights.py", *arguments)
    assert result.returncode == 0, result.stderr
  fine_tune(script, tmp_path / "run", folder, f"--config.init_checkpoint={converted}")
  saved = load_model(tmp_path / "run")
  assert saved.class_names == ["blue", "red"]
  assert saved.config["image_size"] == 96
  assert read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["eval_images"] == 12


@pytest.mark.slow
def test_distilling_on_a_folder_of_images(folder, script, tmp_path):
  teacher = dict(name="gfnet-ti", image_size=96, num_classes=2)
  save_model(tmp_path / "teacher", gfnet_jax.create_model(**teacher), teacher)
  fine_tune(
    *(script, tmp_path / "run", folder),
    f"--config.distillation.teacher={tmp_path / 'teacher'}",
    "--config.distillation.kind=hard",
  )
  assert read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["eval_images"] == 12


@pytest.mark.slow
def test_pretrained_digits_need_a_quarter_of_the_epochs(script, tmp_path):
  scratch = script("train.py", "--workdir", tmp_path / "digits")
  assert scratch.returncode == 0, scratch.stderr
  transfer = script(
    *("train.py", "--config", "configs/transfer.py:digits", "--workdir", tmp_path / "transfer"),
    f"--config.init_checkpoint={tmp_path / 'digits'}",
  )
  assert transfer.returncode == 0, transfer.stderr
  before, after = (
    read_lines(tmp_path / name / "metrics.jsonl")[-1] for name in ("digits", "transfer")
  )
  assert after["step"] * 4 <= before["step"] + 4
  assert after["eval_top1"] >= before["eval_top1"]
