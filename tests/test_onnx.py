"""Models as ONNX files, computed by ONNX Runtime."""

import json
import re
import sys

import jax
import numpy as np
import pytest
from helpers import ROOT, compiled
from own_mixer import register
from PIL import Image
from scipy.special import softmax
from test_mixer_values import make

import gfnet_jax
from gfnet_jax.checkpoints.model import model_metadata
from gfnet_jax.checkpoints.store import Checkpoints
from gfnet_jax.data import imagenet
from gfnet_jax.errors import UserError
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.mixers import MIXERS

onnx = pytest.importorskip("onnx", reason="no onnx; pip install onnx onnxruntime")
pytest.importorskip("onnx.reference")
onnxruntime = pytest.importorskip("onnxruntime", reason="no onnxruntime; pip install onnxruntime")

from gfnet_jax.export import onnx_graph, onnx_mixers  # noqa: E402
from gfnet_jax.export.onnx import to_onnx  # noqa: E402

CONFIG = dict(
  name="gfnet-ti", image_size=(20, 28), num_classes=7, patch_size=4, embed_dim=8, depth=2
)
PYRAMID = dict(
  name="gfnet-h-ti",
  image_size=(24, 16),
  num_classes=7,
  embed_dims=(4, 8),
  depths=(1, 1),
  layer_scale_init=0.5,
)
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


def saved_model(**changes) -> SavedModel:
  """A small model with weights far from their initial values, none of them 0."""
  config = (PYRAMID if changes.get("name") == "gfnet-h-ti" else CONFIG) | changes
  structure, params = split(gfnet_jax.create_model(**config))
  rng = np.random.default_rng(0)
  params = {
    name: jax.numpy.asarray(value + 0.3 * rng.standard_normal(value.shape, np.float32))
    for name, value in params.items()
  }
  return SavedModel(merge(structure, params), config, NAMES if config["num_classes"] else None)


def session(proto) -> "onnxruntime.InferenceSession":
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = 2
  content = proto.SerializeToString()
  return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(proto, images: np.ndarray) -> np.ndarray:
  return session(proto).run(None, {"images": images})[0]


def run_graph(graph, result: str, x: np.ndarray) -> np.ndarray:
  """What a graph makes of its input "x"."""
  kind = onnx.TensorProto.FLOAT
  graph = onnx.helper.make_graph(
    graph.nodes,
    "test",
    [onnx.helper.make_tensor_value_info("x", kind, ["batch", *x.shape[1:]])],
    [onnx.helper.make_tensor_value_info(result, kind, None)],
    list(graph.constants.values()),
  )
  opset = [onnx.helper.make_opsetid("", 20)]
  proto = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
  return session(proto).run(None, {"x": x})[0]


def random_images(batch: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(0).standard_normal((batch, *shape, 3)).astype(np.float32)


def check(actual, expected, at_most: float) -> None:
  assert actual.shape == expected.shape and actual.dtype == np.float32
  assert np.abs(actual - expected).max() < at_most * np.abs(expected).max()


# An odd and an even side; both odd, as in stages of 7 x 7; a line.
@pytest.mark.parametrize(
  "grid", [(4, 7), *(pytest.param(grid, marks=pytest.mark.slow) for grid in ((5, 5), (1, 6)))]
)
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_mixer_computes_what_the_layer_does(mixer, grid):
  layer = merge(*make(mixer, dim=6, grid=grid))
  x = np.random.default_rng(1).standard_normal((2, *grid, 6)).astype(np.float32)
  graph = onnx_graph.Graph()
  name = onnx_mixers.mixer(graph, layer, mixer, "x", (*grid, 6))
  expected = np.asarray(layer(x))
  # A graph has no output that is its input.
  check(x if name == "x" else run_graph(graph, name, x), expected, 2e-6)


@pytest.mark.parametrize(
  ("name", "scan"),
  [
    ("gfnet-h-ti", True),
    pytest.param("gfnet-h-ti", False, marks=pytest.mark.slow),
    pytest.param("gfnet-ti", True, marks=pytest.mark.slow),
  ],
)
def test_one_file_takes_any_batch(name, scan):
  saved = saved_model(name=name, scan=scan)
  images = random_images(5, *saved.model.image_size)
  expected = np.asarray(compiled(saved.model)(images))
  of_file = session(to_onnx(saved, input="float32"))
  for batch in (1, 3, 5):
    check(of_file.run(["logits"], {"images": images[:batch]})[0], expected[:batch], 2e-6)


def test_pixels_are_normalised():
  saved = saved_model()
  pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 28, 3), np.uint8)
  normalised = np.float32((pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
  check(run(to_onnx(saved), pixels), run(to_onnx(saved, input="float32"), normalised), 2e-6)


def test_a_model_without_a_head_gives_features():
  saved = saved_model()
  images = random_images(2, 20, 28)
  logits = run(to_onnx(saved, input="float32"), images)
  kernel, bias = (
    np.asarray(param[...]) for param in (saved.model.head.kernel, saved.model.head.bias)
  )
  saved.model.head = None
  proto = to_onnx(saved, input="float32")
  assert [output.name for output in proto.graph.output] == ["features"]
  check(run(proto, images) @ kernel + bias, logits, 2e-6)


def test_the_file_says_what_it_takes_and_gives():
  proto = to_onnx(saved_model(), weights="int8")
  facts = session(proto).get_modelmeta().custom_metadata_map
  assert facts["input"] == "uint8" and facts["weights"] == "int8"
  assert json.loads(facts["class_names"]) == NAMES
  assert json.loads(facts["image_size"]) == [20, 28]
  assert json.loads(facts["mean"]) == [0.485, 0.456, 0.406]
  assert json.loads(facts["std"]) == [0.229, 0.224, 0.225]
  (images,), (logits,) = proto.graph.input, proto.graph.output
  assert onnx.helper.printable_value_info(images) == "%images[UINT8, batchx20x28x3]"
  assert onnx.helper.printable_value_info(logits) == "%logits[FLOAT, batchx7]"
  names = imagenet.wnids()
  model = SavedModel(saved_model(num_classes=1000).model, CONFIG, names)
  facts = {one.key: one.value for one in to_onnx(model).metadata_props}
  assert json.loads(facts["class_names"])[0] == "tench"
  assert json.loads(facts["wnids"]) == names


def test_only_standard_operators_and_matrices_once():
  saved = saved_model(depth=3, image_size=(32, 32))
  protos = {weights: to_onnx(saved, weights=weights) for weights in onnx_graph.WEIGHT_TYPES}
  for proto in protos.values():
    onnx.checker.check_model(proto, full_check=True)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 20)]
    operators = {node.op_type for node in proto.graph.node}
    assert not operators & {"DFT", "STFT", "Expand", "Tile", "ConstantOfShape"}
    assert {node.domain for node in proto.graph.node} == {""}
  assert {"MatMul", "LayerNormalization", "Gelu"} <= {
    n.op_type for n in protos["float32"].graph.node
  }
  # One pair for all layers of a grid of 8 x 8: by hand, 2 * 5 * 8 along the width and 2 * 8 * 16
  # along the height, and as many back.
  constants = {
    one.name: onnx.numpy_helper.to_array(one) for one in protos["float32"].graph.initializer
  }
  matrices = [array for name, array in constants.items() if name.startswith("fourier/")]
  assert sum(array.size for array in matrices) == 2 * (80 + 256)
  kernel = saved.model.blocks[1].mlp.fc1.kernel[...]
  np.testing.assert_array_equal(constants["blocks.1.mlp.fc1.kernel"], kernel)


def linear(weights: str, x, kernel, bias):
  graph = onnx_graph.Graph(weights)
  return run_graph(graph, graph.linear("x", kernel, bias), x)


def layer_of(size: int = 300, seed: int = 0):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((2, 3, size)).astype(np.float32) + 0.5
  kernel = rng.standard_normal((size, 5)).astype(np.float32) * [1, 0.1, 10, 0, 1]
  return x, kernel.astype(np.float32), rng.standard_normal(5).astype(np.float32)


def test_a_layer_of_halves():
  """Factors and result are rounded to 11 bits; a runtime may leave out some of that."""
  x, kernel, bias = layer_of()
  rounded = linear("float16", x, kernel, bias) - bias
  exact = np.float64(x) @ kernel
  at_most = 2**-11 * (2.01 * np.abs(x) @ np.abs(kernel) + np.abs(exact)) + 1e-5
  assert (np.abs(rounded - exact) <= at_most).all()
  assert np.abs(rounded - exact).max() > 1e-3


def test_a_layer_of_bytes_is_exact_in_integers():
  """By hand: inputs have 256 steps between their extremes, weights 254 in each column."""
  x, kernel, bias = layer_of()
  step = (x.max() - x.min()) / np.float32(255)
  zero = np.rint(-x.min() / step)
  steps = np.clip(np.rint(x / step) + zero, 0, 255) - zero
  column_steps = np.abs(kernel).max(0) / 127
  column_steps[column_steps == 0] = 1
  weights = np.rint(kernel / column_steps)
  assert np.abs(weights).max() == 127
  expected = np.float64(steps) @ weights * step * column_steps + bias
  np.testing.assert_allclose(linear("int8", x, kernel, bias), expected, rtol=1e-6, atol=1e-5)


def test_large_bytes_do_not_saturate():
  """Sums of two products of bytes go beyond 16 bits, where some processors would stop."""
  x = np.ones((1, 64), np.float32)
  x[0, 0] = 0
  kernel = np.ones((64, 2), np.float32) * np.float32([1, -1])
  np.testing.assert_allclose(
    linear("int8", x, kernel, np.zeros(2, np.float32)), [[63, -63]], rtol=1e-5
  )


@pytest.mark.parametrize(("weights", "at_most"), [("float16", 5e-3), ("int8", 0.1)])
@pytest.mark.parametrize("name", [pytest.param("gfnet-ti", marks=pytest.mark.slow), "gfnet-h-ti"])
def test_smaller_weights_give_nearly_the_same(name, weights, at_most):
  saved = saved_model(name=name)
  images = random_images(3, *saved.model.image_size)
  exact, rounded = (
    run(to_onnx(saved, input="float32", weights=kind), images) for kind in ("float32", weights)
  )
  assert 0 < np.linalg.norm(rounded - exact) < at_most * np.linalg.norm(exact)


@pytest.mark.slow
@pytest.mark.parametrize("weights", onnx_graph.WEIGHT_TYPES)
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_second_runtime_agrees(mixer, weights):
  """The one with which ONNX defines its operators, in NumPy; it computes differently in halves."""
  proto = to_onnx(saved_model(mixer=mixer, depth=1), weights=weights)
  pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 28, 3), np.uint8)
  (logits,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"images": pixels})
  check(run(proto, pixels), logits, {"float32": 1e-5, "float16": 5e-3, "int8": 2e-2}[weights])


@pytest.mark.parametrize(
  ("size", "margin"), [((224, 448), (16, 32)), ((8, 12), (0, 0))], ids=["large", "small"]
)
def test_the_recipe_of_the_documents(size, margin, tmp_path, monkeypatch, capsys):
  """Of a photo of the size to which others are scaled, so that its centre is cut out as it is.

  A small one is taken as it is.
  """
  saved = saved_model(image_size=size, patch_size=min(size) // 4, depth=1)
  gfnet_jax.export_model(saved, tmp_path / "xs.onnx", "onnx")
  (height, width), (top, left) = size, margin
  shape = (height + 2 * top, width + 2 * left, 3)
  pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  Image.fromarray(pixels).save(tmp_path / "photo.png")
  section = (ROOT / "docs/deploy.md").read_text().partition("## ONNX")[2].partition("\n## ")[0]
  code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1].replace("photo.jpg", "photo.png")
  monkeypatch.chdir(tmp_path)
  exec(code, {})
  (logits,) = run(to_onnx(saved), pixels[None, top:, left:][:, :height, :width])
  probabilities = softmax(logits)
  best = np.argsort(-probabilities)[:5]
  assert capsys.readouterr().out == "".join(f"{probabilities[i]:.2%} {NAMES[i]}\n" for i in best)


def test_the_command_takes_what_a_run_has(tmp_path, in_process):
  """Its averages, of stacked blocks, with the names of its head; the same bytes from anywhere."""
  config = CONFIG | dict(scan=True)
  saved = saved_model(scan=True)
  _, params = split(saved.model)
  checkpoints = Checkpoints(tmp_path / "run/checkpoints")
  metadata = dict(
    config={}, metrics={}, evaluated=False, next_batch=1, skipped_batches=[], keep=False
  )
  trees = {"params": jax.tree.map(jax.numpy.zeros_like, params), "ema": params}
  checkpoints.save(1, trees, model_metadata(config, NAMES) | metadata)
  checkpoints.close()
  path, file = tmp_path / "w.onnx", tmp_path / "names.txt"
  flags = ("--format", "onnx", "--ema", "--weights", "int8", "--input", "float32")
  code, output, errors = in_process(
    "gfnet_jax/__main__.py", "export", tmp_path / "run", path, *flags
  )
  assert (code, errors) == (0, "")
  size = path.stat().st_size
  assert output == f"Wrote {path}: {size:,} bytes, opset 20, input float32, weights int8\n"
  images = random_images(2, 20, 28)
  expected = to_onnx(saved, weights="int8", input="float32")
  np.testing.assert_array_equal(run(onnx.load(path), images), run(expected, images))
  taken = gfnet_jax.load_model(tmp_path / "run", ema=True)
  assert path.read_bytes() == to_onnx(taken, weights="int8", input="float32").SerializeToString()
  path.unlink()
  file.write_text("\n".join(map(str.upper, NAMES)))
  arguments = (tmp_path / "run", path, "--format", "onnx", "--class-names", file)
  assert in_process("gfnet_jax/__main__.py", "export", *arguments)[0] == 0
  facts = {one.key: one.value for one in onnx.load(path).metadata_props}
  assert json.loads(facts["class_names"]) == [name.upper() for name in NAMES]


def test_models_that_cannot_be_exported_as_asked(monkeypatch):
  register(monkeypatch)
  with pytest.raises(
    UserError, match=r"'gate', which .* expected one of global-filter, .*identity"
  ):
    to_onnx(SavedModel(gfnet_jax.create_model(**CONFIG, mixer="gate"), CONFIG))
  grey = SavedModel(gfnet_jax.create_model(**CONFIG, in_dim=1), CONFIG)
  with pytest.raises(UserError, match=r"1 channels.* --input float32"):
    to_onnx(grey)
  assert run(to_onnx(grey, input="float32"), random_images(1, 20, 28)[..., :1]).shape == (1, 7)
  with pytest.raises(UserError, match=r"'int4', expected one of float32, float16, int8"):
    to_onnx(saved_model(), weights="int4")
  large = saved_model()
  large.model.head.kernel[...] = large.model.head.kernel[...] + 1e5
  with pytest.raises(UserError, match=r"head\.kernel has a weight of magnitude 1e\+05"):
    to_onnx(large, weights="float16")


def test_onnx_is_missing(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "onnx", None)
  monkeypatch.delitem(sys.modules, "gfnet_jax.export.onnx")
  with pytest.raises(UserError, match="package onnx, which is not installed; pip install onnx"):
    gfnet_jax.export_model(saved_model(), tmp_path / "x.onnx", "onnx")
  assert not list(tmp_path.iterdir())
