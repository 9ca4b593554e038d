"""Directories as the Hugging Face hub has them: inverse, bit for bit; damage is told in a line."""

import dataclasses
import hashlib
import json
import math
import pickle
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from PIL import Image

import gfnet_jax
from gfnet_jax.config_files import load_config
from gfnet_jax.data import imagenet
from gfnet_jax.export.model_card import model_card
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.mixers import MIXERS
from gfnet_jax.text import printable
from gfnet_jax.training.run import class_order

MAIN = "gfnet_jax/__main__.py"
CONFIG = dict(
  name="gfnet-ti", image_size=(48, 40), num_classes=7, patch_size=8, embed_dim=8, depth=2
)
PYRAMID = dict(name="gfnet-h-ti", image_size=32, num_classes=7, embed_dims=(8, 8), depths=(1, 2))
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


def saved_model(config=CONFIG, **changes):
  """With weights that need all their bits, minus zero and a subnormal number among them."""
  config = config | changes
  structure, params = split(nnx.eval_shape(lambda: gfnet_jax.create_model(**config)))
  rng = np.random.default_rng(0)
  params = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in params.items()}
  params["pos_embed"].flat[:2] = -0.0, 1e-42
  params = {name: jax.numpy.asarray(x) for name, x in params.items()}
  return SavedModel(
    merge(structure, params),
    config,
    NAMES[: config["num_classes"]] or None,
    step=12,
    precision="highest",
    measured={"digits, test": {"top1": 97.5, "top5": 99.5, "loss": 0.25, "images": 360}},
  )


def bits(model):
  return {name: (x.dtype, x.shape, np.asarray(x).tobytes()) for name, x in split(model)[1].items()}


def check_same(saved, other):
  assert bits(saved.model) == bits(other.model)
  names = ("class_names", "step", "precision", "measured")
  assert [getattr(saved, name) for name in names] == [getattr(other, name) for name in names]
  assert json.loads(json.dumps(saved.config)) == other.config


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
  """A directory of a model, not to be changed."""
  directory = tmp_path_factory.mktemp("pretrained") / "model"
  gfnet_jax.save_pretrained(saved_model(), directory)
  return directory


@pytest.fixture
def directory(kept, tmp_path):
  return Path(shutil.copytree(kept, tmp_path / "model"))


def test_the_inverse_to_the_bit(kept, tmp_path):
  saved = saved_model()
  for loaded in (gfnet_jax.from_pretrained(kept), gfnet_jax.load_model(kept)):
    check_same(saved, loaded)
  gfnet_jax.save_pretrained(gfnet_jax.from_pretrained(str(kept)), tmp_path / "again")
  for name in ("config.json", "model.safetensors", "README.md"):
    assert (kept / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_another_mixer_stacked_and_without_a_head(tmp_path):
  saved = saved_model(mixer="attention", scan=True, num_classes=0)
  gfnet_jax.save_pretrained(saved, tmp_path / "model")
  check_same(saved, gfnet_jax.from_pretrained(tmp_path / "model"))


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, PYRAMID], ids=["isotropic", "hierarchical"])
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer(config, mixer, scan, tmp_path):
  saved = saved_model(config, mixer=mixer, scan=scan)
  gfnet_jax.save_pretrained(saved, tmp_path / "model")
  check_same(saved, gfnet_jax.from_pretrained(tmp_path / "model"))


def test_weights_of_64_bits(tmp_path):
  with jax.enable_x64(True):
    structure, params = split(
      nnx.eval_shape(lambda: gfnet_jax.create_model(**CONFIG, dtype="float64"))
    )
    rng = np.random.default_rng(0)
    model = merge(structure, {n: jax.numpy.asarray(rng.random(x.shape)) for n, x in params.items()})
    gfnet_jax.save_pretrained(SavedModel(model, CONFIG, precision="float64"), tmp_path / "model")
    loaded = gfnet_jax.from_pretrained(tmp_path / "model")
    assert bits(loaded.model) == bits(model) and loaded.model.dtype == np.float64
  with pytest.raises(gfnet_jax.UserError, match="JAX_ENABLE_X64=1"):
    gfnet_jax.from_pretrained(tmp_path / "model")
  rounded = gfnet_jax.from_pretrained(tmp_path / "model", precision="default")
  assert rounded.model.dtype == np.float32 and rounded.precision == "default"


def test_other_libraries_read_the_weights_by_their_official_names(kept):
  """As safetensors has them, and as a file of weights of ours."""
  weights = safetensors.numpy.load_file(kept / "model.safetensors")
  expected = gfnet_jax.to_torch_state_dict(saved_model().model)
  assert weights.keys() == expected.keys()
  for name in weights:
    np.testing.assert_array_equal(weights[name], expected[name])


def test_what_config_json_says(kept):
  config = json.loads((kept / "config.json").read_text())
  assert config["model_type"] == "gfnet" and config["class_names"] == NAMES
  assert config["preprocessing"]["image_size"] == [48, 40]
  assert config["preprocessing"]["resize_to"] == [54, 45]  # 8/7 of the image size, rounded down
  sums = {"model.safetensors": hashlib.sha256((kept / "model.safetensors").read_bytes())}
  assert config["sha256"] == {name: sum.hexdigest() for name, sum in sums.items()}


def test_the_model_card(kept):
  card = (kept / "README.md").read_text()
  _, front, text = card.split("---\n", 2)
  fields = dict(line.split(": ", 1) for line in front.splitlines())
  assert json.loads(fields["pipeline_tag"]) == "image-classification"
  [entry] = json.loads(fields["model-index"])
  [result] = entry["results"]
  assert result["dataset"]["name"] == "digits, test"
  assert [(one["name"], one["value"]) for one in result["metrics"]] == [
    ("top-1 accuracy (%)", 97.5),
    ("top-5 accuracy (%)", 99.5),
    ("loss", 0.25),
  ]
  assert "On 360 images of `digits, test`, after 12 steps" in text
  assert "| top-1 accuracy (%) | 97.50 |" in text and "| loss | 0.2500 |" in text
  assert "built like gfnet-ti, with patch_size=8, embed_dim=8, depth=2." in text
  trained = saved_model()
  trained.config.update(backend="auto", drop_path_rate=0.1, remat=False, scan=True)
  assert "with patch_size=8, embed_dim=8, depth=2." in model_card(trained)
  parameters = sum(x.size for x in split(saved_model().model)[1].values())
  assert f"{parameters:,} parameters" in text and "ant, bee, cat" in text


def test_a_card_says_what_was_not_measured_and_shows_any_name():
  saved = dataclasses.replace(saved_model(), measured={}, class_names=["```\n# x", *NAMES[1:]])
  card = model_card(saved)
  assert "Nothing yet" in card and "model-index" not in card
  assert "    ```\\n# x, bee" in card
  hostile = dataclasses.replace(saved, measured={"`a`\n---\n# b: |": {"top1": math.nan}})
  card = model_card(hostile)
  assert card.count("\n---\n") == 1 and "`?a?\\n---\\n# b: |`" in card
  many = saved_model(num_classes=0)
  assert '"image-feature-extraction"' in model_card(many) and "classes" not in model_card(many)


def test_measurements_that_are_no_numbers_are_left_out(tmp_path):
  """As `evaluate` returns them under an attack, and of a diverged model."""
  values = {"top1": 1.0, "loss": math.nan, "attack": {"name": "pgd"}, "top5": "many"}
  saved = dataclasses.replace(saved_model(), measured={"x": values})
  gfnet_jax.save_pretrained(saved, tmp_path / "model")
  assert gfnet_jax.from_pretrained(tmp_path / "model").measured == {"x": {"top1": 1.0}}


def test_of_imagenet_there_are_wnids_and_the_card_shows_names(tmp_path):
  config = CONFIG | dict(num_classes=1000)
  saved = dataclasses.replace(saved_model(config), class_names=imagenet.wnids())
  gfnet_jax.save_pretrained(saved, tmp_path / "model")
  assert gfnet_jax.from_pretrained(tmp_path / "model").class_names == imagenet.wnids()
  assert "tench, goldfish" in (tmp_path / "model/README.md").read_text()


def change(directory, **fields):
  path = directory / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def tensors(directory, change_tensors):
  """Changes the tensors, with a sum that fits."""
  path = directory / "model.safetensors"
  arrays = safetensors.numpy.load_file(path)
  change_tensors(arrays)
  safetensors.numpy.save_file(arrays, path)
  change(directory, sha256={path.name: hashlib.sha256(path.read_bytes()).hexdigest()})


def replace_by_pickle(directory):
  (directory / "model.safetensors").unlink()
  (directory / "pytorch_model.bin").write_bytes(pickle.dumps({"head.bias": 1}))


def flip(directory):
  path = directory / "model.safetensors"
  content = bytearray(path.read_bytes())
  content[-5] ^= 1
  path.write_bytes(content)


def cut(directory):
  path = directory / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-40])


MODEL = dict(CONFIG)
DAMAGES = {
  "a pickle instead": (replace_by_pickle, r"no model\.safetensors, but pytorch_model\.bin, which"),
  "a pickle by that name": (
    lambda d: (d / "model.safetensors").write_bytes(pickle.dumps({"head.bias": [1.0] * 9})),
    "is not a safetensors file",
  ),
  "no weights": (lambda d: (d / "model.safetensors").unlink(), r"holds no model\.safetensors; get"),
  "no config": (lambda d: (d / "config.json").unlink(), r"cannot read .*config\.json"),
  "no JSON": (lambda d: (d / "config.json").write_text("{"), r"config\.json cannot be used"),
  "another library's config": (
    lambda d: change(d, model_type="vit"),
    "model_type is 'vit', expected 'gfnet'",
  ),
  "a list": (lambda d: (d / "config.json").write_text("[1]"), "model_type is"),
  "a field of another type": (lambda d: change(d, class_names="ant"), "class_names is 'ant'"),
  "no field": (lambda d: change(d, precision=None), "precision is missing"),
  "an evaluation without numbers": (lambda d: change(d, measured={"a": 1}), "not an evaluation"),
  "an unknown precision": (lambda d: change(d, precision="int4"), "precision is 'int4'"),
  "another size": (lambda d: change(d, model=MODEL | dict(image_size=64)), "weights are for"),
  "another width": (lambda d: change(d, model=MODEL | dict(embed_dim=16)), "mis-shaped"),
  "another depth": (lambda d: change(d, model=MODEL | dict(depth=3)), "missing"),
  "a depth without end": (lambda d: change(d, model=MODEL | dict(depth=10**9)), "depth is"),
  "an unknown network": (lambda d: change(d, model=MODEL | dict(name="resnet")), "unknown model"),
  "an unknown argument": (lambda d: change(d, model=MODEL | dict(a=1)), "unknown option 'a'"),
  "a decoder": (
    lambda d: change(d, model=dict(PYRAMID, decoder="semantic-fpn")),
    "describes another model .*: the official format has no networks with a decoder",
  ),
  "a decoder and another mixer": (
    lambda d: change(d, model=dict(PYRAMID, decoder="semantic-fpn", mixer="conv3")),
    "describes another model .* missing",
  ),
  "another mixer": (lambda d: change(d, model=MODEL | dict(mixer="conv3")), "missing"),
  "more classes": (lambda d: change(d, class_names=[*NAMES, "hen"]), "8 class names"),
  "a missing tensor": (lambda d: tensors(d, lambda t: t.pop("head.bias")), "1 missing"),
  "a tensor more": (
    lambda d: tensors(d, lambda t: t.update(x=np.zeros(1, np.float32))),
    "1 unexpected",
  ),
  "a mis-shaped tensor": (
    lambda d: tensors(d, lambda t: t.update({"head.bias": np.zeros(3, np.float32)})),
    "1 mis-shaped",
  ),
  "a tensor of integers": (
    lambda d: tensors(d, lambda t: t.update({"head.bias": np.zeros(7, np.int32)})),
    "of type I32",
  ),
  "a flipped bit": (flip, "SHA-256 sum"),
  "the end cut off": (cut, "SHA-256 sum"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line(name, directory, in_process, tmp_path):
  damage, expected = DAMAGES[name]
  damage(directory)
  with pytest.raises(gfnet_jax.UserError, match=expected) as caught:
    gfnet_jax.from_pretrained(directory)
  assert "\n" not in str(caught.value) and str(directory) in str(caught.value)
  Image.new("RGB", (60, 60)).save(tmp_path / "photo.png")
  code, output, errors = in_process(MAIN, "predict", directory, tmp_path / "photo.png")
  assert (code, output, errors.count("\n")) == (2, "", 1)
  assert str(directory) in errors


@pytest.mark.slow
def test_any_config_is_a_model_or_one_line(directory):
  """Bytes of it changed, removed and doubled: what is loaded has the weights that were saved."""
  path = directory / "config.json"
  content, rng = path.read_bytes(), np.random.default_rng(0)
  expected = bits(saved_model().model)
  for _ in range(400):
    start = int(rng.integers(len(content)))
    end = start + int(rng.integers(1, 20))
    piece = rng.choice([b"", bytes([rng.integers(256)]), content[start:end] * 2, b"1e999", b"[]"])
    path.write_bytes(content[:start] + piece + content[end:])
    try:
      loaded = gfnet_jax.from_pretrained(directory)
    except gfnet_jax.UserError as error:
      assert "\n" not in printable(error, limit=4000)
    else:
      assert bits(loaded.model) == expected
      model_card(loaded)


@pytest.mark.slow
def test_every_byte_of_the_weights_counts(directory):
  path = directory / "model.safetensors"
  content = path.read_bytes()
  for position in np.random.default_rng(0).integers(0, len(content), 60).tolist():
    changed = bytearray(content)
    changed[position] ^= 1 << (position % 8)
    path.write_bytes(changed)
    with pytest.raises(gfnet_jax.UserError, match=r"SHA-256|no safetensors"):
      gfnet_jax.from_pretrained(directory)


def test_nothing_is_written_of_what_cannot_be_saved(kept, tmp_path):
  with pytest.raises(gfnet_jax.UserError, match="exists already"):
    gfnet_jax.save_pretrained(saved_model(), kept)
  for wrong, expected in [
    (dataclasses.replace(saved_model(), class_names=["a"]), "1 class names"),
    (dataclasses.replace(saved_model(), measured={"top1": 1.0}), "expected evaluations by"),
    (dataclasses.replace(saved_model(), config=CONFIG | dict(depth=3)), "another model"),
  ]:
    with pytest.raises(gfnet_jax.UserError, match=expected):
      gfnet_jax.save_pretrained(wrong, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
  def interrupt(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr("gfnet_jax.weights.pretrained.to_json", interrupt)
  with pytest.raises(KeyboardInterrupt):
    gfnet_jax.save_pretrained(saved_model(), tmp_path / "new")
  assert not (tmp_path / "new").exists()


def test_a_run_that_starts_from_one_has_its_classes_in_their_order(kept, tmp_path):
  config = load_config("digits")
  config.init_checkpoint = str(kept)
  assert class_order(config, tmp_path / "none") == NAMES


@pytest.mark.parametrize("options", [dict(ema=True), dict(which="best"), dict(which=3)])
def test_weights_that_are_not_there_are_not_replaced_by_others(kept, options):
  with pytest.raises(gfnet_jax.UserError, match=r"holds one set of weights.*leave out"):
    gfnet_jax.load_model(kept, **options)


def test_a_revision_is_only_of_the_hub(kept):
  with pytest.raises(
    gfnet_jax.UserError, match=r"revision is 'main', but .* is not a model of the"
  ):
    gfnet_jax.from_pretrained(kept, revision="main")


def test_a_directory_that_is_not_there(tmp_path):
  with pytest.raises(gfnet_jax.UserError, match=r"cannot read .*config\.json \(No such file"):
    gfnet_jax.from_pretrained(tmp_path / "missing")
