"""Models as StableHLO, run by processes that cannot import this project."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import HANGS, ROOT, compiled, script_environment
from jax import export
from PIL import Image

import gfnet_jax
from gfnet_jax.export.stablehlo import to_stablehlo
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.mixers import MIXERS
from gfnet_jax.weights.state_dict import (
  load_torch_state_dict,
  model_from_torch,
  to_torch_state_dict,
)

CONFIG = dict(
  name="gfnet-ti", image_size=(48, 40), num_classes=7, patch_size=8, embed_dim=8, depth=2
)
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


def saved_model(**changes):
  """With weights of NumPy's: initial ones would be compiled."""
  config = CONFIG | changes
  structure, shapes = split(nnx.eval_shape(lambda: gfnet_jax.create_model(**config)))
  rng = np.random.default_rng(0)
  params = {
    name: jax.numpy.asarray(0.2 * rng.standard_normal(x.shape), x.dtype)
    for name, x in shapes.items()
  }
  return SavedModel(merge(structure, params), config, class_names=NAMES)


def check_logits(actual, expected, at_most):
  assert actual.shape == expected.shape
  assert np.abs(np.float64(actual) - np.float64(expected)).max() < at_most
  assert np.abs(expected).max() > 100 * at_most


def run_elsewhere(directory, *batches):
  """The logits by name and batch size, of a process without this project."""
  subprocess.run(
    [sys.executable, ROOT / "tests/run_stablehlo.py", directory, *map(str, batches)],
    cwd=directory,
    env=script_environment(),
    check=True,
    timeout=HANGS,
  )
  return {
    path.name.partition(".")[0]: {int(batch): rows for batch, rows in np.load(path).items()}
    for path in directory.glob("*.logits.npz")
  }


def test_one_file_gives_the_same_logits_for_any_batch_size_elsewhere(tmp_path):
  saved = saved_model(depth=1)
  report = gfnet_jax.export_model(saved, tmp_path / "tiny.stablehlo", "stablehlo")
  assert report["bytes"] == (tmp_path / "tiny.stablehlo").stat().st_size
  pixels = np.random.default_rng(0).integers(0, 256, (3, 48, 40, 3), np.uint8)
  np.save(tmp_path / "tiny.npy", pixels)
  found = run_elsewhere(tmp_path, 1, 3)["tiny"]
  expected = np.asarray(compiled(saved.model)(gfnet_jax.normalize(jax.numpy.asarray(pixels))))
  assert found.keys() == {1, 3}
  for batch, logits in found.items():
    check_logits(logits, np.resize(expected, (batch, 7)), 1e-6)


def test_what_stands_beside_a_program(tmp_path):
  saved = saved_model(image_size=224, depth=1)
  gfnet_jax.export_model(saved, tmp_path / "xs.stablehlo", "stablehlo", input="float32")
  facts = json.loads((tmp_path / "xs.stablehlo.json").read_text())
  assert facts["input"] == "float32" and facts["output"] == "logits"
  assert (facts["image_size"], facts["resize_to"], facts["channels"]) == ([224, 224], [256, 256], 3)
  assert (facts["mean"], facts["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
  assert facts["class_names"] == NAMES and "wnids" not in facts
  assert facts["platforms"] == ["cpu", "cuda", "tpu"]
  program = export.deserialize((tmp_path / "xs.stablehlo").read_bytes())
  assert program.platforms == ("cpu", "cuda", "tpu")
  assert str(program.in_avals[0]) == "float32[batch,224,224,3]"
  with pytest.raises(gfnet_jax.UserError, match=r"xs\.stablehlo exists already"):
    gfnet_jax.export_model(saved, tmp_path / "xs.stablehlo", "stablehlo")
  (tmp_path / "xs.stablehlo").unlink()
  with pytest.raises(gfnet_jax.UserError, match=r"xs\.stablehlo\.json exists already"):
    gfnet_jax.export_model(saved, tmp_path / "xs.stablehlo", "stablehlo")


@pytest.mark.slow
def test_the_recipe_of_the_documents_says_what_predict_says(tmp_path, monkeypatch, capsys):
  """Of a photo of the size to which others are scaled, so that its pixels are the same."""
  saved = saved_model(image_size=224, patch_size=32, depth=1)
  gfnet_jax.export_model(saved, tmp_path / "xs.stablehlo", "stablehlo")
  pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / "photo.png")
  section = (ROOT / "docs/deploy.md").read_text().partition("## StableHLO")[2].partition("\n## ")[0]
  code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1].replace("photo.jpg", "photo.png")
  assert code.count("\n") <= 16 and "gfnet_jax" not in code
  [best] = saved.predict(tmp_path / "photo.png")
  monkeypatch.chdir(tmp_path)
  exec(code, {})
  assert capsys.readouterr().out == "".join(
    f"{one.probability:.2%} {one.class_name}\n" for one in best
  )


def test_a_file_is_the_same_from_everywhere_and_names_no_place():
  saved = saved_model(depth=1)
  program = to_stablehlo(saved)
  assert program == to_stablehlo(saved)
  assert b".py" not in program and str(ROOT).encode() not in program


def test_models_that_cannot_be_exported_as_asked(tmp_path):
  grey = saved_model(in_dim=1, depth=1)
  with pytest.raises(gfnet_jax.UserError, match=r"1 channels.* --input float32"):
    to_stablehlo(grey)
  assert "float32[batch,48,40,1]" in str(
    export.deserialize(to_stablehlo(grey, input="float32")).in_avals
  )
  with pytest.raises(gfnet_jax.UserError, match=r"'float16', expected one of uint8, float32"):
    to_stablehlo(grey, input="float16")
  with jax.enable_x64(True):
    double = saved_model(dtype="float64")
    with pytest.raises(gfnet_jax.UserError, match=r"float64.* --precision default"):
      to_stablehlo(double)


def test_jax_without_a_cpu(tmp_path, monkeypatch):
  """As with JAX_PLATFORMS=cuda: told before there is a model."""

  def devices(backend=None):
    raise RuntimeError(f"Unknown backend {backend}")

  monkeypatch.setattr(jax, "devices", devices)
  with pytest.raises(
    gfnet_jax.UserError, match=r"^stablehlo is written on the CPU.* JAX_PLATFORMS"
  ):
    gfnet_jax.export_model(None, tmp_path / "x.stablehlo", "stablehlo")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["auto", "fused", "dense"])
def test_no_backend_but_a_portable_one_is_exported(backend):
  """A kernel for TPUs is left out, and with it a transform of the platform's own."""
  program = export.deserialize(to_stablehlo(saved_model(backend=backend, depth=1)))
  operations = set(re.findall(r"stablehlo\.(\w+)", program.mlir_module()))
  assert "dot_general" in operations and "fft" not in operations
  called = re.findall(r"custom_call @(\w+)", program.mlir_module())
  assert set(called) <= {"shape_assertion"}  # that the batch is not empty


def test_products_have_the_precision_of_the_run():
  """Of those in the first of "highest", none may be of TF32 or bfloat16 on an accelerator."""
  saved = saved_model(depth=1)
  for precision, expected in (("highest", True), ("default", False)):
    program = export.deserialize(to_stablehlo(dataclasses.replace(saved, precision=precision)))
    products = re.findall(r"stablehlo\.dot_general.*", program.mlir_module())
    assert products and all("[HIGHEST, HIGHEST]" in product for product in products) == expected


@pytest.mark.slow
def test_products_of_bfloat16():
  saved = saved_model(dtype="bfloat16")
  images = np.random.default_rng(0).standard_normal((3, 48, 40, 3)).astype(np.float32)
  program = export.deserialize(to_stablehlo(saved, input="float32"))
  expected = np.asarray(compiled(saved.model)(images))
  check_logits(jax.jit(program.call)(images), expected, 1e-6)
  assert np.abs(np.asarray(compiled(saved_model().model)(images)) - expected).max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_and_stacked_blocks(mixer, scan):
  saved = saved_model(mixer=mixer, scan=scan)
  images = np.random.default_rng(0).standard_normal((3, 48, 40, 3)).astype(np.float32)
  program = export.deserialize(to_stablehlo(saved, input="float32"))
  check_logits(jax.jit(program.call)(images), np.asarray(compiled(saved.model)(images)), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("topology", "compiler"), [("v5e:2x2", "libtpu"), ("h100:1", "jax_cuda12_plugin")]
)
def test_the_compilers_for_accelerators_take_the_same_file(topology, compiler, tmp_path):
  if importlib.util.find_spec(compiler) is None:
    pytest.skip(f"{compiler} is not installed (requirements-ahead.txt)")
  path = tmp_path / "tiny.stablehlo"
  gfnet_jax.export_model(saved_model(), path, "stablehlo")
  environment = {  # without what the tests set for themselves
    name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))
  }
  done = subprocess.run(
    [sys.executable, ROOT / "tests/compile_stablehlo.py", topology, path],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
    timeout=HANGS,
  )
  assert done.stdout.endswith("(8, 7)\n")


def expected_logits(name, model, weights, images):
  """By the official implementation, kept and live.

  Where it knows no such size, by ours with FFTs in float64, which adds no rounding of its own.
  """
  from parity import golden, reference, to_channels_first  # skips without PyTorch

  height, width = model.image_size
  if height != width:
    with jax.enable_x64(True):
      other = gfnet_jax.create_model(
        name, image_size=(height, width), backend="fft", dtype="float64"
      )
      load_torch_state_dict(other, {key: np.float64(array) for key, array in weights.items()})
      return [np.asarray(compiled(other)(np.float64(images)))]
  module = reference.load(reference.create(name, height), weights)
  witnesses = [module(to_channels_first(images)).detach().numpy()]
  kept = golden(f"logits_{name}_224" if height == 224 else f"logits_{name}_224to{height}")
  return witnesses + ([kept["logits"]] if kept else [])


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.usefixtures("compiled_as_for_users")
@pytest.mark.parametrize("name", gfnet_jax.list_models())
def test_official_networks(name, tmp_path, measured):
  """Of 224, of 384 and of a size that is not square; batches of 1, 3 and 64 from one file each."""
  from parity import random_array, reference

  initial = reference.golden_weights(reference.shapes(reference.create(name)))
  witnesses = {}
  for size in (224, 384, (192, 256)):
    model, config = model_from_torch(initial, image_size=size)
    images = random_array(2, *model.image_size, 3)
    path = tmp_path / "x".join(map(str, model.image_size))
    np.save(path.with_suffix(".npy"), images)
    saved = SavedModel(model, config)
    gfnet_jax.export_model(saved, path.with_suffix(".stablehlo"), "stablehlo", input="float32")
    witnesses[path.name] = expected_logits(name, model, to_torch_state_dict(model), images)
  found = run_elsewhere(tmp_path, 1, 3, 64)
  assert found.keys() == witnesses.keys()
  for size, batches in found.items():
    for batch, logits in batches.items():
      for expected in witnesses[size]:
        rows = min(batch, len(expected))  # of what was kept, some is of one image
        difference = np.abs(logits[:rows] - expected[:rows]).max()
        measured(f"StableHLO of {name}, {size}, batch {batch}", difference, 2e-6)
      np.testing.assert_allclose(logits[2:], logits[: max(batch - 2, 0)], atol=2e-6)
