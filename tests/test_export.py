"""gfnet-jax export: from which models, in which formats, and what is refused in a line."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import gfnet_jax
from gfnet_jax.checkpoints.model import model_metadata
from gfnet_jax.checkpoints.store import Checkpoints
from gfnet_jax.export.formats import FORMATS
from gfnet_jax.models.functional import merge, split
from gfnet_jax.weights.files import read_state_dict, write_state_dict

MAIN = "gfnet_jax/__main__.py"
CONFIG = dict(name="gfnet-ti", image_size=32, num_classes=3, patch_size=8, embed_dim=8, depth=2)
NAMES = ["ant", "bee", "cat"]


def make_params(config, seed):
  _, shapes = split(nnx.eval_shape(lambda: gfnet_jax.create_model(**config)))
  rng = np.random.default_rng(seed)
  return {name: jax.numpy.asarray(rng.random(x.shape), x.dtype) for name, x in shapes.items()}


def make_model(config=CONFIG, seed=0):
  structure, _ = split(nnx.eval_shape(lambda: gfnet_jax.create_model(**config)))
  return merge(structure, make_params(config, seed))


def official(config, seed):
  return gfnet_jax.to_torch_state_dict(make_model(config, seed))


def check_weights(path, expected):
  found = safetensors.numpy.load_file(path)
  assert found.keys() == expected.keys()
  for name in found:
    np.testing.assert_array_equal(found[name], expected[name])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run whose step 10 was better than step 20 but for the averages, and whose head has names."""
  directory = tmp_path_factory.mktemp("run")
  checkpoints = Checkpoints(directory / "checkpoints")
  data = dict(source="folder", name="/home/somebody/photos", eval_split="val")
  for step, top1, ema_top1 in ((10, 90.0, 50.0), (20, 80.0, 95.0)):
    metadata = model_metadata(CONFIG, NAMES) | dict(
      config=dict(data=data),
      metrics=dict(top1=top1, loss=0.5, images=40, ema_top1=ema_top1, ema_loss=0.25),
      evaluated=True,
      next_batch=step,
      skipped_batches=[],
      keep=False,
    )
    trees = {"params": make_params(CONFIG, step), "ema": make_params(CONFIG, step + 1)}
    checkpoints.save(step, trees, metadata)
  checkpoints.close()
  return directory


@pytest.mark.parametrize(
  ("flags", "seed"),
  [((), 20), (("--which", "best"), 10), (("--which", "10", "--ema"), 11), (("--ema",), 21)],
)
def test_the_weights_of_a_run_that_are_asked_for(run, flags, seed, in_process, tmp_path):
  path = tmp_path / "w.safetensors"
  code, output, errors = in_process(MAIN, "export", run, path, "--format", "safetensors", *flags)
  assert (code, errors) == (0, "")
  check_weights(path, official(CONFIG, seed))
  size = path.stat().st_size
  assert output == f"Wrote {path}: {size:,} bytes, tensors 25\n"


def test_what_a_run_measured_is_of_the_weights_that_were_taken(run, tmp_path):
  taken = gfnet_jax.load_model(run, "best", ema=True)
  assert taken.measured == {"photos, val": {"top1": 95.0, "loss": 0.25, "images": 40}}
  gfnet_jax.save_pretrained(gfnet_jax.load_model(run, 10), tmp_path / "model")
  again = gfnet_jax.from_pretrained(tmp_path / "model")
  assert again.measured == {"photos, val": {"top1": 90.0, "loss": 0.5, "images": 40}}
  assert again.class_names == NAMES and again.step == 10
  for name in ("config.json", "README.md"):  # of the machine there is nothing
    assert "somebody" not in (tmp_path / "model" / name).read_text()


def test_a_run_stays_one_with_exported_weights_in_its_directory(run, tmp_path):
  directory = Path(shutil.copytree(run, tmp_path / "run"))
  (directory / "config.json").write_text("{}")
  gfnet_jax.export_model(
    gfnet_jax.load_model(directory), directory / "model.safetensors", "safetensors"
  )
  assert gfnet_jax.load_model(directory).step == 20


def test_every_source_gives_the_same_bytes(tmp_path, in_process):
  """A converted file, a file itself, stacked blocks and a pretrained directory: the same bytes."""
  weights = official(CONFIG, 0)
  write_state_dict(tmp_path / "own.safetensors", weights)
  gfnet_jax.save_model(tmp_path / "converted", make_model(), CONFIG, NAMES)
  stacked = CONFIG | dict(scan=True)
  model = gfnet_jax.load_torch_state_dict(
    nnx.eval_shape(lambda: gfnet_jax.create_model(**stacked)), weights
  )
  gfnet_jax.save_model(tmp_path / "stacked", model, stacked, NAMES)
  gfnet_jax.save_pretrained(gfnet_jax.load_model(tmp_path / "stacked"), tmp_path / "pretrained")
  for source in ("converted", "stacked", "pretrained"):
    path = tmp_path / f"{source}.safetensors"
    code, _, errors = in_process(
      MAIN, "export", tmp_path / source, path, "--format", path.suffix[1:]
    )
    assert (code, errors) == (0, "")
    assert path.read_bytes() == (tmp_path / "own.safetensors").read_bytes()


@pytest.mark.slow
def test_a_file_for_pytorch(tmp_path, in_process):
  torch = pytest.importorskip("torch")
  gfnet_jax.save_model(tmp_path / "model", make_model(), CONFIG, NAMES)
  path = tmp_path / "w.pth"
  assert in_process(MAIN, "export", tmp_path / "model", path, "--format", "torch")[0] == 0
  found = torch.load(path, weights_only=True)["model"]
  expected = official(CONFIG, 0)
  assert list(found) == list(expected)
  assert all(np.array_equal(found[name].numpy(), expected[name]) for name in expected)
  assert read_state_dict(path).keys() == found.keys()


def test_the_command_writes_a_program_and_a_directory(run, tmp_path, in_process):
  program, directory = tmp_path / "w.stablehlo", tmp_path / "model"
  for path, format, *flags in (
    (program, "stablehlo", "--input", "float32"),
    (directory, "pretrained"),
  ):
    code, output, errors = in_process(MAIN, "export", run, path, "--format", format, *flags)
    assert (code, errors) == (0, "") and output.startswith(f"Wrote {path}: ")
  assert json.loads((tmp_path / "w.stablehlo.json").read_text())["class_names"] == NAMES
  assert gfnet_jax.load_model(directory).class_names == NAMES


REFUSED = {
  "another ending": (
    ("w.bin", "torch"),
    "w.bin does not end in .pth, as files of the format torch",
  ),
  "no ending": (("w", "stablehlo"), "choose w.stablehlo, for example"),
  "an unknown format": (("w.tflite", "tflite"), "invalid choice: 'tflite'"),
  "an option of others": (
    ("w.pth", "torch", "--input", "uint8"),
    "no option 'input', expected none",
  ),
  "an unknown input": (
    ("w.stablehlo", "stablehlo", "--input", "int4"),
    "input is 'int4', expected",
  ),
  "an unknown step": (("w.safetensors", "safetensors", "--which", "5"), "5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_line_and_leaves_nothing(name, run, tmp_path, in_process):
  (path, format, *flags), expected = REFUSED[name]
  code, output, errors = in_process(
    MAIN, "export", run, tmp_path / path, "--format", format, *flags
  )
  assert (code, output, errors.count("\n")) == (2, "", 1)
  assert expected in errors
  assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced_and_asked_for_first(tmp_path, in_process):
  for name, format in (("w.safetensors", "safetensors"), ("model", "pretrained")):
    (tmp_path / name).write_text("mine")
    code, _, errors = in_process(MAIN, "export", "missing", tmp_path / name, "--format", format)
    assert code == 2 and f"{name} exists already" in errors
    assert (tmp_path / name).read_text() == "mine"


def test_another_mixer_has_no_official_names(tmp_path, in_process):
  config = CONFIG | dict(mixer="conv3")
  gfnet_jax.save_model(tmp_path / "model", make_model(config), config, NAMES)
  formats = {"w.safetensors": "safetensors"}
  if importlib.util.find_spec("torch"):
    formats["w.pth"] = "torch"
  for path, format in formats.items():
    code, _, errors = in_process(
      MAIN, "export", tmp_path / "model", tmp_path / path, "--format", format
    )
    assert code == 2 and errors.count("\n") == 1
    assert "mixes tokens by 'conv3', but the official format knows only 'global-filter'" in errors
  assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("path", ["w.onnx", "w.pth", "page"])
def test_what_is_not_installed_is_told_before_the_model_is_loaded(
  path, tmp_path, in_process, monkeypatch
):
  format, missing = {
    "w.onnx": ("onnx", "need the package onnx"),
    "w.pth": ("torch", "PyTorch is needed"),
    "page": ("web", "there is no npm"),
  }[path]
  if format == "web":
    pytest.importorskip("onnx")
  if format == "onnx":
    monkeypatch.delitem(sys.modules, "gfnet_jax.export.onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
  monkeypatch.setitem(sys.modules, "torch", None)
  monkeypatch.setenv("PATH", "")
  for flags, expected in (((), missing), (("--runtime", "x"), "x")):
    if not flags or format == "web":
      code, output, errors = in_process(
        MAIN, "export", "missing", tmp_path / path, "--format", format, *flags
      )
      assert (code, output, errors.count("\n")) == (2, "", 1) and expected in errors
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("path", "format"),
  [
    ("w.safetensors", "safetensors"),
    ("model", "pretrained"),
    ("w.stablehlo", "stablehlo"),
    ("page", "web"),
  ],
)
def test_a_model_that_segments_has_no_format(path, format, tmp_path):
  if format == "web":
    pytest.importorskip("onnx")
  sizes = dict(image_size=32, num_classes=3, embed_dims=(4, 4), depths=(1, 1))
  config = dict(name="gfnet-h-ti", decoder="semantic-fpn", **sizes)
  saved = gfnet_jax.SavedModel(nnx.eval_shape(lambda: gfnet_jax.create_model(**config)), config)
  options = dict(runtime=tmp_path) if format == "web" else {}
  with pytest.raises(gfnet_jax.UserError, match=r"the model segments images, .* --segment takes"):
    gfnet_jax.export_model(saved, tmp_path / path, format, **options)
  assert not list(tmp_path.iterdir())


def test_formats_by_name():
  saved = gfnet_jax.SavedModel(make_model(), CONFIG, NAMES)
  with pytest.raises(gfnet_jax.UserError, match=r"unknown format 'touch'.* did you mean torch\?"):
    gfnet_jax.export_model(saved, "w.pth", "touch")
  with pytest.raises(gfnet_jax.UserError, match=r"memory://.* is in a store; export to a disk"):
    gfnet_jax.export_model(saved, "memory://bucket/w.pth", "torch")
  with pytest.raises(gfnet_jax.UserError, match=r"^got an object of type GFNet, .* SavedModel\("):
    gfnet_jax.export_model(saved.model, "w.safetensors", "safetensors")
  assert {"safetensors", "torch", "pretrained", "stablehlo"} <= FORMATS.keys()
