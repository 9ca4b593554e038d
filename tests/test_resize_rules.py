"""tools/resize_rules.py: what it measures, and its table."""

import importlib

import numpy as np
import pytest

import gfnet_jax
from gfnet_jax.config_files import read_config
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.models.resize import RULES


@pytest.fixture
def tool(monkeypatch):
  monkeypatch.syspath_prepend("tools")
  return importlib.import_module("resize_rules")


@pytest.mark.slow
def test_at_the_own_size_every_rule_has_the_accuracy_of_the_evaluation(tool):
  config = read_config("configs/digits.py", [])
  described = dict(
    name="gfnet-ti", image_size=8, patch_size=2, embed_dim=4, depth=1, num_classes=10
  )
  saved = SavedModel(
    gfnet_jax.create_model(**described),
    described,
    run_config={"data": config.data.to_dict()},
    class_names=None,
  )
  top1 = gfnet_jax.evaluate(saved)["top1"]
  rows = tool.measure(saved, [(8, 8), (4, 12)])
  np.testing.assert_allclose([rows[8, 8][rule] for rule in RULES], top1, atol=1e-4)
  assert list(rows[4, 12]) == list(RULES)


def test_the_table_names_the_size_of_the_training(tool):
  rows = {(8, 8): {"kernel": 97.04, "spectrum": 97.06}, (8, 16): {"kernel": 0.0, "spectrum": 100.0}}
  assert tool.markdown(rows, (8, 8)).splitlines() == [
    "| images | `kernel` | `spectrum` |",
    "|---|---|---|",
    "| **8 x 8** | 97.0 | 97.1 |",
    "| 8 x 16 | 0.0 | 100.0 |",
  ]


def test_the_plot_has_a_line_for_every_rule_over_the_squares(tool, tmp_path, monkeypatch):
  pytest.importorskip("matplotlib")
  from gfnet_jax.views import pyplot

  drawn = []
  monkeypatch.setattr(pyplot, "save_figure", lambda figure, path: drawn.append(figure))
  rows = {size: {"kernel": 10.0 + size[0], "spectrum": 2.0} for size in [(9, 9), (8, 9), (5, 5)]}
  plt = pyplot.import_pyplot()
  tool.draw(plt, rows, (8, 8), tmp_path / "rules.svg")
  kernel, spectrum, trained = drawn[0].axes[0].lines
  plt.close(drawn[0])
  assert kernel.get_xydata().tolist() == [[5, 15], [9, 19]]
  assert spectrum.get_xydata().tolist() == [[5, 2], [9, 2]]
  assert list(trained.get_xdata()) == [8, 8]


def test_a_plot_of_no_square_is_refused_in_one_line(in_process):
  code, _, error = in_process("tools/resize_rules.py", "--sizes", "8x16", "--figure", "rules.svg")
  assert code == 2
  assert "none of --sizes is a square" in error


@pytest.mark.parametrize("size", ["0", "8x", "x8", "8x8x8", "-4", "1.5", "²"])
def test_sizes_that_are_none_are_refused_in_one_line(tool, in_process, size):
  code, _, error = in_process("tools/resize_rules.py", "--sizes", size)
  assert code == 2
  assert "is not a size, expected such as 224 or 224x320" in error
