"""Models from directories, files and names; predictions and evaluations by the public names."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from helpers import ROOT, compiled, random_model
from PIL import Image
from sklearn.datasets import load_digits

import gfnet_jax
from gfnet_jax.inference import saved_model
from gfnet_jax.inference.read_image import read_image
from gfnet_jax.models.variants import VARIANTS
from gfnet_jax.weights.files import write_state_dict

CONFIG = dict(
  name="gfnet-ti", image_size=(48, 40), num_classes=7, patch_size=8, embed_dim=8, depth=1
)
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp("model") / "named"
  gfnet_jax.save_model(directory, gfnet_jax.create_model(**CONFIG), CONFIG, NAMES)
  return directory


@pytest.fixture(scope="module")
def saved(directory):
  return gfnet_jax.load_model(directory)


@pytest.fixture
def pixels():
  return np.random.default_rng(0).integers(0, 256, (3, 60, 70, 3), np.uint8)


def test_predictions_are_the_best_of_the_softmax(saved, pixels):
  """Of images that need no resizing but the crop."""
  exact = np.stack([read_image(image, (48, 40)) for image in pixels])
  logits = compiled(saved.model)(gfnet_jax.normalize(jax.numpy.asarray(exact)))
  expected = np.asarray(jax.nn.softmax(logits))
  predictions = saved.predict(pixels, top=3)
  for row, best in zip(expected, predictions, strict=True):
    order = np.argsort(-row)[:3].tolist()
    assert [one.index for one in best] == order
    assert [one.class_name for one in best] == [NAMES[i] for i in order]
    np.testing.assert_allclose([one.probability for one in best], row[order], rtol=1e-5)


def test_paths_images_and_arrays_are_the_same(saved, pixels, tmp_path):
  images = [Image.fromarray(array) for array in pixels]
  paths = [tmp_path / f"{i}.png" for i in range(3)]
  for image, path in zip(images, paths, strict=True):
    image.save(path)
  expected = saved.predict(pixels)
  assert saved.predict(list(pixels)) == saved.predict(images) == saved.predict(paths) == expected
  assert saved.predict(jax.numpy.asarray(pixels)) == expected
  for row, wanted in zip(saved.predict(map(str, paths), batch_size=2), expected, strict=True):
    assert [one.class_name for one in row] == [one.class_name for one in wanted]
    found = [one.probability for one in row]  # by another program, whose roundings differ
    assert found == pytest.approx([one.probability for one in wanted], rel=1e-6)
  for one in (pixels[0], images[0], paths[0], str(paths[0])):
    assert saved.predict(one) == expected[:1]
  assert saved.predict([]) == []


def test_a_damaged_image_and_numbers_out_of_range(saved, pixels, tmp_path):
  path = tmp_path / "cut.png"
  Image.fromarray(pixels[0]).save(path)
  path.write_bytes(path.read_bytes()[:-2000])
  with Image.open(path) as image, pytest.raises(gfnet_jax.UserError, match="cannot be read"):
    saved.predict(image)
  for options in (dict(top=0), dict(batch_size=0)):
    with pytest.raises(gfnet_jax.UserError, match="expected at least 1 for both"):
      saved.predict(pixels, **options)


def test_all_classes_where_there_are_few(saved, pixels):
  [best] = saved.predict(pixels[0], top=100)
  assert sorted(one.index for one in best) == list(range(7))
  assert sum(one.probability for one in best) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
  ("image", "message"),
  [
    (np.zeros((60, 70, 3), np.float32), r"an array \(60, 70, 3\) of float32, expected"),
    (np.zeros((2, 3, 60, 70, 3), np.uint8), r"an array \(3, 60, 70, 3\) of uint8, expected"),
    (np.zeros((60, 70, 1), np.uint8), r"an array \(60, 70, 1\) of uint8, expected"),
    (3, "an image is of type int, expected a path, a Pillow image or an array"),
    ("nowhere.png", "cannot read nowhere.png"),
  ],
)
def test_what_is_no_image(saved, image, message):
  with pytest.raises(gfnet_jax.UserError, match=message):
    saved.predict([image] if isinstance(image, int) else image)


def test_a_file_of_weights_and_a_name_are_loaded_too(tmp_path, monkeypatch):
  kind, settings = VARIANTS["gfnet-ti"]
  monkeypatch.setitem(VARIANTS, "gfnet-ti", (kind, settings | dict(embed_dim=16, depth=2)))
  config = dict(name="gfnet-ti", image_size=32, num_classes=3)
  model = random_model(lambda: gfnet_jax.create_model(**config), 0.1)
  expected = compiled(model)(np.zeros((1, 32, 32, 3), np.float32))
  path = tmp_path / "weights.safetensors"
  write_state_dict(path, gfnet_jax.to_torch_state_dict(model))
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(saved_model, "fetch", lambda name: {"gfnet-ti": path}[name])
  images = np.zeros((1, 32, 32, 3), np.float32)
  for source in (path, str(path), "gfnet-ti"):
    saved = gfnet_jax.load_model(source)
    assert saved.config == config
    assert (saved.class_names, saved.step, saved.run_config) == (None, 0, None)
    np.testing.assert_array_equal(compiled(saved.model)(images), expected)


def test_several_processes_do_not_download(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(gfnet_jax.UserError, match="cannot download the weights of gfnet-ti at once"):
    gfnet_jax.load_model("gfnet-ti")


def test_weights_that_change_in_place_count(directory, pixels):
  saved = gfnet_jax.load_model(directory)
  before = saved.predict(pixels[0], top=7)
  saved.model.head.bias[...] += jax.numpy.arange(7.0)
  assert saved.predict(pixels[0], top=7) != before


def test_the_first_python_of_the_readme(saved, directory, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs/digits").symlink_to(directory)
  code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
  exec(code, {})
  scan = np.floor(load_digits().images[0] * 255 / 16).astype(np.uint8)
  best = saved.predict(Image.fromarray(scan))[0][0]
  assert capsys.readouterr().out == f"{best.class_name} {best.probability}\n"


def test_folders_named_by_numbers_are_not_the_classes_of_names(saved, tmp_path):
  for i in range(7):
    (tmp_path / str(i)).mkdir()
    Image.new("RGB", (60, 70)).save(tmp_path / str(i) / "0.png")
  with pytest.raises(gfnet_jax.UserError, match="not those of the training data"):
    gfnet_jax.evaluate(saved, tmp_path)


@pytest.mark.parametrize(
  ("class_names", "label_of"),
  [
    # Of a run that had the integers in the order of text; of official weights; of others' names.
    (["0", "1", "10", "100", "2", "20", "3"], ["0", "1", "10", "100", "2", "20", "3"].index),
    (None, ["0", "1", "2", "3", "10", "20", "100"].index),
    (["100", "20", "3", "10", "1", "2", "0"], ["100", "20", "3", "10", "1", "2", "0"].index),
  ],
)
def test_folders_named_by_integers_have_the_labels_of_the_model(
  saved, tmp_path, monkeypatch, class_names, label_of
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  images, labels = [], []
  for i, name in enumerate(("0", "1", "2", "3", "10", "20", "100")):
    path = tmp_path / "images" / name / "0.png"
    path.parent.mkdir(parents=True)
    pixels = np.random.default_rng(i).integers(0, 256, (60, 70, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    images.append(path)
    labels.append(label_of(name))
  results = gfnet_jax.evaluate(
    dataclasses.replace(saved, class_names=class_names), tmp_path / "images"
  )
  ranked = [[one.index for one in best] for best in saved.predict(images, top=7)]
  hits = [order.index(label) < 5 for order, label in zip(ranked, labels, strict=True)]
  assert results["top5"] == pytest.approx(100 * np.mean(hits))
  probabilities = [
    next(one.probability for one in best if one.index == label)
    for best, label in zip(saved.predict(images, top=7), labels, strict=True)
  ]
  assert results["loss"] == pytest.approx(-np.log(probabilities).mean(), rel=1e-4)


def test_evaluate_takes_a_folder(saved, tmp_path):
  for i, name in enumerate(NAMES):
    (tmp_path / "val" / name).mkdir(parents=True)
    pixels = np.random.default_rng(i).integers(0, 256, (60, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "val" / name / "0.png")
  results = gfnet_jax.evaluate(saved, tmp_path, batch_size=3)
  paths = [tmp_path / "val" / name / "0.png" for name in NAMES]
  best = [predictions[0].index for predictions in saved.predict(paths)]
  assert results["images"] == 7
  assert results["top1"] == pytest.approx(100 * np.mean(np.array(best) == np.arange(7)))
  with pytest.raises(gfnet_jax.UserError, match="name no data set; give one"):
    gfnet_jax.evaluate(saved)


def test_evaluate_takes_what_load_model_takes(directory, saved, tmp_path):
  for name in NAMES:
    (tmp_path / name).mkdir()
    Image.new("RGB", (60, 70)).save(tmp_path / name / "0.png")
  found = gfnet_jax.evaluate(str(directory), tmp_path, batch_size=8)
  expected = gfnet_jax.evaluate(saved, tmp_path, batch_size=8)
  assert found | {"images_per_second": 0} == expected | {"images_per_second": 0}
  with pytest.raises(gfnet_jax.UserError, match="no checkpoint in nowhere"):
    gfnet_jax.evaluate("nowhere", tmp_path)
