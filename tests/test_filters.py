"""The filters of models as pictures: what is drawn, by hand, and what the tool answers."""

import io
import re

import numpy as np
import own_mixer
import pytest
from helpers import ROOT, random_model
from PIL import Image

import gfnet_jax
from gfnet_jax.errors import UserError
from gfnet_jax.views import figures
from gfnet_jax.views.filters import (
  FilterLayer,
  by_stage,
  filter_layers,
  high_share,
  radial_profile,
  radius,
)
from gfnet_jax.views.mosaic import kernels, magnitudes, mosaic, to_png
from gfnet_jax.views.visualize import visualize_filters

TOOL = "tools/visualize_filters.py"
SMALL = dict(image_size=32, num_classes=2)
PYRAMID = dict(embed_dims=(2, 4), depths=(2, 1), image_size=(32, 48), num_classes=2)


def layer_of(response: np.ndarray, name: str = "blocks.0", stage: int = 0) -> FilterLayer:
  kernel = np.fft.ifft2(response, axes=(0, 1)).real
  return FilterLayer(name, stage, kernel, response.astype(complex))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  directory = tmp_path_factory.mktemp("model") / "mine"
  config = dict(name="gfnet-h-ti", **PYRAMID)
  gfnet_jax.save_model(directory, gfnet_jax.create_model(**config), config)
  return directory


@pytest.mark.parametrize("scan", [False, True])
def test_all_blocks_in_their_order(scan):
  model = random_model(lambda: gfnet_jax.create_model("gfnet-h-ti", scan=scan, **PYRAMID), 0.02)
  layers = filter_layers(model)
  assert [layer.name for layer in layers] == ["blocks.0.0", "blocks.0.1", "blocks.1.0"]
  assert [layer.kernel.shape for layer in layers] == [(8, 12, 2), (8, 12, 2), (4, 6, 4)]
  assert [len(stage) for stage in by_stage(layers)] == [2, 1]
  for layer, block in zip(layers, (block for _, s in model.stages() for block in s), strict=True):
    np.testing.assert_array_equal(layer.kernel, block.filter.kernel())
    spectrum = np.fft.fft2(layer.kernel.astype(np.float64), axes=(0, 1))
    np.testing.assert_allclose(layer.response, spectrum, atol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_half_of_the_channels_of_a_global_local_mixer_have_filters(scan):
  config = dict(name="gfnet-ti", mixer="global-local", embed_dim=4, depth=2, scan=scan, **SMALL)
  model = random_model(lambda: gfnet_jax.create_model(**config), 0.02)
  layers = filter_layers(model)
  assert [(layer.name, layer.kernel.shape) for layer in layers] == [
    ("blocks.0", (2, 2, 2)),
    ("blocks.1", (2, 2, 2)),
  ]
  # Every frequency of 2 x 2 tokens is its own mirror image, where real tokens keep the real part.
  weight = np.asarray(next(iter(model.stages()))[1][1].filter.complex_weight[...])
  np.testing.assert_allclose(layers[1].response, weight[0], atol=1e-6)


def test_the_profile_of_a_low_pass_by_hand():
  # The frequencies of 4 x 4 tokens have squared radii of (0, 1, 4, 1) + (0, 1, 4, 1) sixteenths:
  # rings of 1, 8, 5 and 2 frequencies at 0, 0.25, 0.5 (with the root of 5) and 0.75 (of 8).
  response = np.zeros((4, 4, 2))
  response[0, 0] = 2
  response[0, 1] = response[1, 0] = response[3, 0] = response[0, 3] = [1, 3]
  radii, energy = radial_profile(response)
  np.testing.assert_allclose(radii, [0, 0.25, 0.5, 0.75])
  np.testing.assert_allclose(energy, [[4, 4], [4 / 8, 36 / 8], [0, 0], [0, 0]])
  assert high_share(response) == 0
  assert high_share(np.ones((4, 4, 1))) == 11 / 16
  assert high_share(np.zeros((4, 4, 1))) == 0


def test_pictures_are_put_side_by_side():
  pictures = np.arange(8.0).reshape(2, 2, 1, 2)
  gap = np.nan
  expected = [[0, 1, gap, 2, 3], [gap] * 5, [4, 5, gap, 6, 7]]
  np.testing.assert_array_equal(mosaic(pictures), expected)


def test_known_filters_have_their_answers_in_the_centre():
  rows, columns = np.fft.fftfreq(5)[:, None], np.fft.fftfreq(6)[None]
  identity = np.ones((5, 6))
  shift = np.exp(-2j * np.pi * (rows * 1 + columns * 2))
  low_pass = np.hypot(rows, columns) < 0.19
  layer = layer_of(np.stack([identity, shift, low_pass], -1))
  pictures = magnitudes([layer], [0, 1, 2])
  np.testing.assert_allclose(pictures[:, :13].ravel()[~np.isnan(pictures[:, :13]).ravel()], 1)
  # 1/6 along the rows of 6, but not 1/5 along the columns of 5.
  expected = np.zeros((5, 6))
  expected[2, 2:5] = 1
  np.testing.assert_array_equal(pictures[:, 14:], expected)
  found = kernels([layer], [0, 1])
  expected = np.zeros((2, 5, 6))
  expected[0, 2, 3] = expected[1, 3, 5] = 1
  np.testing.assert_allclose(found[:, :6], expected[0], atol=1e-12)
  np.testing.assert_allclose(found[:, 7:], expected[1], atol=1e-12)


def test_a_png_has_the_colours_of_the_figure():
  values = np.array([[0, 4, np.nan], [2, 1, 0.25]])
  png, size = to_png(values, pixels=2)
  with Image.open(io.BytesIO(png)) as image:
    pixels = np.asarray(image.convert("RGB"))[::2, ::2]
    assert image.size == size == (6, 4)
  expected = ["ffffd9", "081d58", "ffffff"], ["41b6c4", "c7e9b4", None]
  for row, colours in zip(pixels, expected, strict=True):
    for pixel, colour in zip(row, colours, strict=True):
      assert colour is None or bytes(pixel).hex() == colour
  # Halfway between the first two of the map's nine colours, ffffd9 and edf8b1 (a step is 1/8 of 4).
  np.testing.assert_allclose(pixels[1, 2].astype(int), [246, 251.5, 197], atol=1)
  assert to_png(np.zeros((1, 2)))[1] == (6, 3)


def test_the_tool_draws_stages_apart(checkpoint, tmp_path, in_process, monkeypatch):
  pytest.importorskip("matplotlib")
  monkeypatch.setattr(figures, "DPI", 60)  # faster
  output = tmp_path / "a" / "filters"
  code, printed, _ = in_process(TOOL, checkpoint, "--output", output)
  names = ["filters-stage0.png", "filters-stage1.png", "energy.png", "filters.html"]
  assert code == 0
  assert printed.splitlines() == [f"wrote {output / name}" for name in names]
  for name in names[:3]:
    with Image.open(output / name) as image:
      assert min(image.size) > 100
      assert len(image.convert("RGB").resize((64, 64)).getcolors(4096)) > 8, "something is drawn"
  assert "<title>Filters of mine</title>" in (output / "filters.html").read_text()


def test_from_python_the_files_are_returned(checkpoint, tmp_path):
  files = visualize_filters(checkpoint, tmp_path / "new", page_only=True)
  assert files == [tmp_path / "new" / "filters.html"]
  assert files[0].is_file()


def test_the_known_filters_of_the_documentation(tmp_path, monkeypatch):
  [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/filters.md").read_text(), re.DOTALL)
  monkeypatch.chdir(tmp_path)
  exec(code, {})
  identity, shifts, low_passes = filter_layers(gfnet_jax.load_model("runs/known").model)
  for channel in range(24):
    for layer, place in ((identity, (0, 0)), (shifts, (channel % 5, channel % 3))):
      expected = np.zeros((16, 16))
      expected[place] = 1
      np.testing.assert_allclose(layer.kernel[..., channel], expected, atol=1e-6)
      np.testing.assert_allclose(np.abs(layer.response[..., channel]), 1, atol=1e-5)
    disc = np.abs(low_passes.response[..., channel])
    np.testing.assert_allclose(disc, radius((16, 16)) <= 0.02 * channel, atol=1e-5)


@pytest.mark.slow
def test_the_tool_draws_some_layers_as_svg(checkpoint, tmp_path, in_process):
  pytest.importorskip("matplotlib")
  chosen = ("--layers", 2, "--channels", 3, 0, "--format", "svg")
  code, _, _ = in_process(TOOL, checkpoint, "--output", tmp_path, *chosen)
  assert code == 0
  assert {path.name for path in tmp_path.iterdir()} == {"filters.svg", "energy.svg", "filters.html"}


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("--layers", 3), "layer 3 is out of range: the model has 3 layers with filters, 0 to 2"),
    (("--layers", 0, -1), "layer -1 is out of range: the model has 3 layers with filters, 0 to 2"),
    (("--channels", 2), "channel 2 is out of range: blocks.0.0 has 2 channels, 0 to 1"),
    (("--layers", 2, "--channels", 4), "channel 4 is out of range: blocks.1.0 has 4 channels"),
  ],
)
def test_what_is_out_of_range_is_one_line(checkpoint, tmp_path, in_process, arguments, message):
  pytest.importorskip("matplotlib")
  code, printed, errors = in_process(TOOL, checkpoint, "--output", tmp_path / "x", *arguments)
  assert (code, printed) == (2, "")
  assert errors.startswith(f"error: {message}")
  assert errors.count("\n") == 1
  assert not (tmp_path / "x").exists()


def test_a_model_of_another_mixer_is_one_line(monkeypatch, tmp_path, in_process):
  own_mixer.register(monkeypatch)
  config = dict(name="gfnet-ti", mixer="gate", embed_dim=4, depth=1, **SMALL)
  gfnet_jax.save_model(tmp_path / "gate", gfnet_jax.create_model(**config), config)
  code, _, errors = in_process(TOOL, tmp_path / "gate", "--page-only")
  assert code == 2
  assert errors == (
    "error: the token mixer of this model is 'gate', which has no global filters to look at; "
    "choose a model with the mixer 'global-filter'\n"
  )


def test_without_matplotlib_there_is_the_page(monkeypatch, checkpoint, tmp_path, in_process):
  monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
  code, _, errors = in_process(TOOL, checkpoint, "--output", tmp_path / "x")
  assert code == 2
  assert errors.startswith("error: the pictures are drawn by matplotlib, which is not installed;")
  assert errors.count("\n") == 1
  code, printed, _ = in_process(TOOL, checkpoint, "--output", tmp_path / "x", "--page-only")
  assert (code, printed) == (0, f"wrote {tmp_path / 'x' / 'filters.html'}\n")


def test_a_model_without_blocks_of_filters_is_refused_by_name():
  class Nothing:
    mixer = "pooling"

    def stages(self):
      yield None, []

  with pytest.raises(UserError, match="the token mixer of this model is 'pooling'"):
    filter_layers(Nothing())
