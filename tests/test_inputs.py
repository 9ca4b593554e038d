"""The data of a run that is continued."""

import io
import json

import pytest
from PIL import Image

from configs import default
from gfnet_jax.checkpoints.checksums import write_checksums
from gfnet_jax.checkpoints.model import model_metadata
from gfnet_jax.training.inputs import open_inputs
from gfnet_jax.training.resume import trained_classes
from gfnet_jax.training.run import class_order

AS_TEXT = [str(i) for i in (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)]
COLOURS = {
  (split, i): (i, 100 * (split == "val"), 7) for split in ("train", "val") for i in range(12)
}


def folder_config(root):
  for split in ("train", "val"):
    for i in range(12):
      (root / split / str(i)).mkdir(parents=True)
      picture = Image.new("RGB", (32, 32), COLOURS[split, i])
      picture.save(root / split / str(i) / f"{i}.png")
  config = default.get_config()
  config.model.update(name="gfnet-ti", image_size=32, num_classes=0)
  config.data.update(source="folder", name=str(root), eval_split="val", batch_size=4)
  return config


def records(source):
  """What an image shows, as (split, number), and its label."""
  shown = {colour: key for key, colour in COLOURS.items()}
  samples = [source[i] for i in range(len(source))]
  return [
    (shown[Image.open(io.BytesIO(sample.image)).getpixel((0, 0))], sample.label)
    for sample in samples
  ]


def describe(path, class_names):
  """A checkpoint of which only the description matters."""
  path.mkdir(parents=True)
  description = {"step": int(path.name), **model_metadata({"name": "gfnet-ti"}, class_names)}
  (path / "metadata.json").write_text(json.dumps(description))
  write_checksums(path)


def test_a_run_continues_with_the_labels_that_it_began_with(tmp_path, monkeypatch):
  """Older versions had classes named by integers in the order of text."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  config = folder_config(tmp_path / "data")
  directory = tmp_path / "run/checkpoints"
  assert trained_classes(directory) is None
  new = open_inputs(config, trained_classes(directory))
  assert new.train_source.class_names == [str(i) for i in range(12)]
  assert records(new.train_source) == [(("train", int(i)), int(i)) for i in AS_TEXT]
  assert records(new.eval_source) == [(("val", int(i)), int(i)) for i in AS_TEXT]

  describe(directory / "00000002", ["x"])
  describe(directory / "00000005", AS_TEXT)
  describe(directory / "00000009", ["y"])
  (directory / "00000009/metadata.json").write_text("damaged")
  assert trained_classes(directory) == AS_TEXT
  old = open_inputs(config, trained_classes(directory))
  assert old.train_source.class_names == old.eval_source.class_names == AS_TEXT
  assert records(old.train_source) == [(("train", int(name)), i) for i, name in enumerate(AS_TEXT)]
  assert records(old.eval_source) == [(("val", int(name)), i) for i, name in enumerate(AS_TEXT)]


def test_other_classes_are_left_to_be_compared(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  inputs = open_inputs(folder_config(tmp_path / "data"), [*AS_TEXT[:-1], "z"])
  assert inputs.train_source.class_names == [str(i) for i in range(12)]


@pytest.mark.parametrize("field", ["distillation.teacher", "init_checkpoint"])
def test_a_run_has_the_labels_of_the_model_that_it_learns_from(tmp_path, field):
  config, workdir = default.get_config(), tmp_path / "run"
  assert class_order(config, workdir) is None
  checkpoint = tmp_path / "older/checkpoints/00000005"
  describe(checkpoint, AS_TEXT)
  for source in (checkpoint, checkpoint.parent, tmp_path / "older"):
    config.update_from_flattened_dict({field: str(source)})
    assert class_order(config, workdir) == AS_TEXT
  describe(workdir / "checkpoints/00000001", ["its", "own"])
  assert class_order(config, workdir) == ["its", "own"]
  config.update_from_flattened_dict({field: "gfnet-ti"})  # official weights name no classes
  assert class_order(config, tmp_path / "new") is None
