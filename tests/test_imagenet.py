"""ImageNet's classes: their names, whose weights have them, and data that hold only some."""

import dataclasses
import json
import tomllib

import jax
import numpy as np
import pytest
from helpers import ROOT, compiled, random_model
from PIL import Image

import gfnet_jax
from gfnet_jax.data import imagenet
from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.data.prepare.archives import imagenet_classes
from gfnet_jax.inference import saved_model
from gfnet_jax.inference.metrics import format_results
from gfnet_jax.inference.read_image import read_image
from gfnet_jax.models.variants import VARIANTS
from gfnet_jax.weights.convert import import_weights, official_classes
from gfnet_jax.weights.download import OFFICIAL_ADDRESSES
from gfnet_jax.weights.files import write_state_dict

CONFIG = dict(
  name="gfnet-ti", image_size=(48, 40), num_classes=1000, patch_size=8, embed_dim=8, depth=1
)
SOME = {"n02012849": 134, "n01440764": 0, "n03126707": 517, "n15075141": 999, "n07747607": 950}


def test_the_classes_are_those_of_tfds_and_their_names_differ():
  names = imagenet.names()
  assert imagenet.wnids() == imagenet_classes()
  assert len({name.lower() for name in names.values()}) == 1000
  assert all(name.isprintable() and name == name.strip() for name in names.values())
  expected = ["crane (bird)", "tench", "crane (machine)", "toilet tissue", "orange"]
  assert [names[wnid] for wnid in SOME] == expected
  assert [imagenet.wnids().index(wnid) for wnid in SOME] == list(SOME.values())


def test_names_are_installed_with_their_licence():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())
  licence = "gfnet_jax/data/imagenet_classes.LICENSE.txt"
  assert licence in project["project"]["license-files"]
  assert project["tool"]["setuptools"]["package-data"]["gfnet_jax.data"] == ["*.txt"]
  assert (ROOT / licence).read_text().lstrip().startswith("Apache License")
  assert "Apache License 2.0" in imagenet.FILE.read_text()


@pytest.mark.parametrize(
  ("source", "variant", "num_classes", "certain"),
  [
    ("gfnet-xs", "gfnet-xs", 1000, True),
    ("downloads/gfnet-xs.pth", "gfnet-xs", 1000, True),
    ("gfnet-h-b.safetensors", "gfnet-h-b", 1000, True),
    (OFFICIAL_ADDRESSES["gfnet-s"], "gfnet-s", 1000, True),
    ("gfnet-xs.pth", "gfnet-s", 1000, False),
    ("gfnet-xs.pth", "gfnet-xs", 10, False),
    ("checkpoint_best.pth", "gfnet-xs", 1000, False),
    ("https://host/gfnet.pth", "gfnet-xs", 1000, False),
    ("https://host/gfnet-xs.pth", "gfnet-xs", 1000, False),
    ("runs/gfnet-xs", "gfnet-xs", 1000, False),
  ],
)
def test_classes_are_only_named_where_they_are_certain(source, variant, num_classes, certain):
  found = official_classes(source, dict(name=variant, num_classes=num_classes))
  assert found == (imagenet.wnids() if certain else None)


@pytest.fixture(scope="module")
def official_file(tmp_path_factory):
  """A file like an official one, of a smaller image size; meanwhile gfnet-ti has two blocks."""
  path = tmp_path_factory.mktemp("weights") / "gfnet-ti.safetensors"
  with pytest.MonkeyPatch.context() as monkeypatch:
    kind, settings = VARIANTS["gfnet-ti"]
    monkeypatch.setitem(VARIANTS, "gfnet-ti", (kind, settings | dict(embed_dim=16, depth=2)))
    model = random_model(lambda: gfnet_jax.create_model("gfnet-ti", image_size=32), 0.1)
    write_state_dict(path, gfnet_jax.to_torch_state_dict(model))
    yield path


def test_official_weights_predict_names(official_file, tmp_path, monkeypatch, in_process):
  image = tmp_path / "a.png"
  Image.new("RGB", (32, 32)).save(image)
  monkeypatch.setattr(saved_model, "fetch", {"gfnet-ti": official_file}.__getitem__)
  for source in (official_file, "gfnet-ti"):
    assert gfnet_jax.load_model(source).class_names == imagenet.wnids()
  code, output, errors = in_process(
    "convert_torch_weights.py", official_file, tmp_path / "converted"
  )
  assert code == 0, errors
  assert "Its classes are assumed to be ImageNet's, since the file has the name of" in output
  code, output, _ = in_process("tools/predict.py", tmp_path / "converted", image, "--json")
  assert code == 0
  for one in json.loads(output)["predictions"]:
    assert one["wnid"] == imagenet.wnids()[one["index"]]
    assert one["class"] == imagenet.names()[one["wnid"]]


def test_a_head_that_is_kept_keeps_its_names(official_file, tmp_path):
  import_weights(str(official_file), tmp_path / "converted", num_classes=1000)
  assert gfnet_jax.load_model(tmp_path / "converted").class_names == imagenet.wnids()


def test_a_fresh_head_has_no_names(official_file, tmp_path, in_process):
  arguments = (official_file, tmp_path / "converted", "--num-classes", 1001)
  code, output, _ = in_process("convert_torch_weights.py", *arguments)
  assert (code, output.count("\n")) == (0, 1)
  assert gfnet_jax.load_model(tmp_path / "converted").class_names is None


@pytest.fixture(scope="module")
def saved():
  model = random_model(lambda: gfnet_jax.create_model(**CONFIG), 0.1)
  return gfnet_jax.SavedModel(model, CONFIG, imagenet.wnids())


@pytest.fixture(scope="module")
def some(tmp_path_factory):
  """Two images each of five classes; returns the directory, the pixels and the wnids."""
  directory, pixels, wnids = tmp_path_factory.mktemp("some"), [], []
  for i, wnid in enumerate(sorted([*SOME, *SOME])):
    array = np.random.default_rng(i).integers(0, 256, (60, 70, 3), np.uint8)
    (directory / wnid).mkdir(exist_ok=True)
    Image.fromarray(array).save(directory / wnid / f"{i}.png")
    pixels.append(read_image(array, CONFIG["image_size"]))
    wnids.append(wnid)
  return directory, np.stack(pixels), wnids


@pytest.mark.parametrize("classes", ["all", "present"])
def test_some_of_the_classes_are_evaluated_by_their_wnids(saved, some, classes):
  """Against a softmax over all columns, or over those of the folders, in NumPy."""
  directory, pixels, wnids = some
  logits = np.asarray(compiled(saved.model)(normalize(jax.numpy.asarray(pixels))), np.float64)
  if classes == "present":
    columns = sorted(SOME.values())
    logits, labels = logits[:, columns], [columns.index(SOME[wnid]) for wnid in wnids]
  else:
    labels = [SOME[wnid] for wnid in wnids]
  score = logits[range(10), labels]
  losses = np.log(np.exp(logits).sum(1)) - score
  results = gfnet_jax.evaluate(saved, directory, classes=classes)
  assert results["loss"] == pytest.approx(losses.mean(), rel=1e-5)
  for metric, best in (("top1", 1), ("top5", 5)):
    hits = (logits > score[:, None]).sum(1) < best
    assert results[metric] == pytest.approx(100 * hits.mean())
  compared = {"all": 1000, "present": 5}[classes]
  assert (results["classes_present"], results["classes_compared"]) == (5, compared)
  said = {"all": "chosen among all 1000", "present": "chosen among these"}[classes]
  assert f"10 images   5 classes present, {said}   " in format_results(results)


def test_classes_that_are_not_certain_are_refused(saved, some, tmp_path):
  directory, *_ = some
  unnamed = dataclasses.replace(saved, class_names=None)
  with pytest.raises(gfnet_jax.UserError, match="holds 5 of ImageNet's classes, and the model"):
    gfnet_jax.evaluate(unnamed, directory)
  with pytest.raises(gfnet_jax.UserError, match=r"unknown choice of classes 'presnt'.* present"):
    gfnet_jax.evaluate(saved, directory, classes="presnt")
  for name in ("n01440764", "elsewhere"):
    (tmp_path / name).mkdir()
    Image.new("RGB", (60, 70)).save(tmp_path / name / "0.png")
  with pytest.raises(gfnet_jax.UserError, match="has 2 classes, the model has 1000"):
    gfnet_jax.evaluate(saved, tmp_path)
