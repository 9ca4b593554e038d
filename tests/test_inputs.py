"""The data of a run that goes on."""

import json

import pytest

from configs import default
from gfnet_jax.training.inputs import open_inputs
from gfnet_jax.training.resume import trained_classes
from gfnet_jax.training.run import class_order

AS_TEXT = [str(i) for i in (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)]


def folder_config(root):
  for split in ("train", "val"):
    for i in range(12):
      (root / split / str(i)).mkdir(parents=True)
      (root / split / str(i) / f"{i}.jpg").write_bytes(f"{split} {i}".encode())
  config = default.get_config()
  config.model.update(name="gfnet-ti", image_size=32, num_classes=0)
  config.data.update(source="folder", name=str(root), eval_split="val", batch_size=4)
  return config


def records(source):
  return [(source[i].image.decode(), source[i].label) for i in range(len(source))]


def test_a_run_goes_on_with_the_labels_that_it_began_with(tmp_path, monkeypatch):
  """Older versions had classes named by integers in the order of text."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  config = folder_config(tmp_path / "data")
  directory = tmp_path / "run/checkpoints"
  assert trained_classes(directory) is None
  new = open_inputs(config, trained_classes(directory))
  assert new.train_source.class_names == [str(i) for i in range(12)]
  assert records(new.train_source) == [(f"train {i}", int(i)) for i in AS_TEXT]
  assert records(new.eval_source) == [(f"val {i}", int(i)) for i in AS_TEXT]

  for step, metadata in (
    (5, {"class_names": AS_TEXT}),
    (9, "damaged"),
    (2, {"class_names": ["x"]}),
  ):
    (directory / f"{step:08d}").mkdir(parents=True)
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    (directory / f"{step:08d}/metadata.json").write_text(text)
  assert trained_classes(directory) == AS_TEXT
  old = open_inputs(config, trained_classes(directory))
  assert old.train_source.class_names == old.eval_source.class_names == AS_TEXT
  assert records(old.train_source) == [(f"train {name}", i) for i, name in enumerate(AS_TEXT)]
  assert records(old.eval_source) == [(f"val {name}", i) for i, name in enumerate(AS_TEXT)]


def test_other_classes_are_left_to_be_compared(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  inputs = open_inputs(folder_config(tmp_path / "data"), [*AS_TEXT[:-1], "z"])
  assert inputs.train_source.class_names == [str(i) for i in range(12)]


@pytest.mark.parametrize("field", ["distillation.teacher", "init_checkpoint"])
def test_a_run_has_the_labels_of_the_model_that_it_learns_from(tmp_path, field):
  config, workdir = default.get_config(), tmp_path / "run"
  assert class_order(config, workdir) is None
  checkpoint = tmp_path / "older/checkpoints/00000005"
  checkpoint.mkdir(parents=True)
  (checkpoint / "metadata.json").write_text(json.dumps({"class_names": AS_TEXT}))
  for source in (checkpoint, checkpoint.parent, tmp_path / "older"):
    config.update_from_flattened_dict({field: str(source)})
    assert class_order(config, workdir) == AS_TEXT
  (workdir / "checkpoints/00000001").mkdir(parents=True)
  metadata = json.dumps({"class_names": ["its", "own"]})
  (workdir / "checkpoints/00000001/metadata.json").write_text(metadata)
  assert class_order(config, workdir) == ["its", "own"]
  config.update_from_flattened_dict({field: "gfnet-ti"})  # official weights name no classes
  assert class_order(config, tmp_path / "new") is None
