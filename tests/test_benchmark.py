"""The benchmarks of computations at a small size: rows, files, mistakes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfnet_jax.models.variants import create_model

SMALL = ("--models", "gfnet-ti", "--rounds", "2")


def run(script, tmp_path, *arguments):
  """The rows and the whole result of a benchmark."""
  path = tmp_path / "new" / "result.json"
  done = script("tools/benchmark.py", *arguments, "--output", path)
  assert done.returncode == 0, done.stderr
  result = json.loads(path.read_text())
  assert result["machine"]["versions"]["jax"]
  for row in result["rows"]:
    assert all(str(column) in done.stdout for column in row)
  return result["rows"]


def test_models(script, tmp_path):
  options = ("--image-sizes", 32, "--batch-sizes", 2, "--peak-side", 64)
  rows = run(script, tmp_path, "models", *SMALL, *options, "--options", "scan")
  assert [row["what"] for row in rows] == ["inference", "training"]
  for row in rows:
    assert row["ms"] > 0
    assert row["images/s"] == pytest.approx(2e3 / row["ms"])
    assert row["peak_mb"] > 4 * 7
  assert 0 < rows[0]["filters_limit"] < 1
  assert rows[1]["filters_limit"] is None
  # 4 tokens: patches, 12 MLPs and filters; then the head. By hand.
  products = 4 * 768 * 256 + 12 * 4 * 8 * 256**2 + 256 * 1000
  filters = 12 * 256 * (2 * 2.5 * 4 * 2 + 6 * 2 * 2)
  assert rows[0]["gflop"] == pytest.approx(2 * (2 * products + filters) / 1e9)


def test_filters_alone_are_all_filters_one_after_the_other(monkeypatch):
  monkeypatch.syspath_prepend("tools")
  from benchmarks import _models

  model = create_model("gfnet-ti", image_size=32)
  (found,) = _models.filters_alone(model, 2)()
  (key,) = jax.random.split(jax.random.key(0), 1)
  expected = 1e10 * jax.random.normal(key, (2, 2, 2, 256))
  for block in model.blocks:
    expected = block.filter(expected)
  scale = float(jnp.abs(expected).max())
  assert scale > 1e-30  # normal numbers to the end
  np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


@pytest.mark.slow
def test_layer(script, tmp_path):
  rows = run(script, tmp_path, "layer", "--sides", 4, 8, "--width", 64, "--rounds", 2)
  assert [row["layer"] for row in rows[:5]] == ["copy", "filter", "attention", "mlp", "convolution"]
  assert rows[0]["of_copy"] == 1
  left_out = run(script, tmp_path, "layer", "--sides", 4, 8, "--width", 64, "--memory", 2e-6)
  assert len(left_out) == 9, "the kernel of the spatial MLP on 8x8 tokens takes 16 kB"


def test_exponent_of_a_power_law(monkeypatch):
  monkeypatch.syspath_prepend("tools")
  from benchmarks.layer import exponent

  seconds = {side**2: 1e-9 * side**3 for side in (14, 28, 56, 112)}
  seconds[14**2] = 1.0  # too small a grid to count
  assert exponent(seconds) == pytest.approx(1.5)
  assert exponent({28**2: 1.0}) is None


def test_turns_alternate_and_ratios_are_of_rounds(monkeypatch):
  monkeypatch.syspath_prepend("tools")
  from benchmarks import _measure

  calls = []
  functions = {name: (lambda name=name: calls.append(name)) for name in "ab"}
  times = _measure.time_in_turns(functions, rounds=3)
  assert calls == list("aabbabbaab")
  assert [len(seconds) for seconds in times.values()] == [3, 3]
  assert _measure.ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0])[1] == pytest.approx(2)
  np.testing.assert_allclose(_measure.quartiles_ms([0.5]), 500)


def test_attention_of_the_layer_benchmark_is_attention(monkeypatch):
  """In chunks of rows it gives what the plain formula gives."""
  monkeypatch.syspath_prepend("tools")
  import jax
  from benchmarks import layer

  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 128))
  whole = layer.make_attention(x)()
  monkeypatch.setattr(layer, "SCORES", 60)  # five rows of twelve scores
  np.testing.assert_allclose(layer.make_attention(x)(), whole, atol=1e-6)
  inner, outer = layer.make_attention(x).args[1:]
  query, key, value = np.moveaxis((x.reshape(2, 12, 128) @ inner).reshape(2, 12, 3, 2, 64), 2, 0)
  scores = np.einsum("bqhd,bkhd->bhqk", query, key) / 8
  scores = np.exp(scores - scores.max(-1, keepdims=True))
  scores /= scores.sum(-1, keepdims=True)
  mixed = np.einsum("bhqk,bkhd->bqhd", scores, value).reshape(2, 12, 128)
  np.testing.assert_allclose(whole.reshape(2, 12, 128), mixed @ outer, atol=1e-4)


@pytest.mark.slow
def test_torch(script, tmp_path):
  pytest.importorskip("torch")
  options = ("--image-size", 32, "--batch-size", 2, "--precision", "highest")
  inference, training = run(script, tmp_path, "torch", *SMALL, *options)
  assert inference["difference"] < 1e-5, "it is the same network"
  for row in (inference, training):
    assert row["eager_low"] <= row["eager/jax"] <= row["eager_high"]


def test_backends(script, tmp_path):
  rows = run(script, tmp_path, "backends", "--batch-size", 1, "--rounds", 2, "--largest", 7)
  assert {row["grid"] for row in rows} == {"7x7x512", "7x7x768"}
  for grid in {row["grid"] for row in rows}:
    ratios = [row["to_the_best"] for row in rows if row["grid"] == grid]
    assert min(ratios) == 1
    assert sum(row["auto"] == "*" for row in rows if row["grid"] == grid) == 1


def test_mistakes(script):
  done = script("tools/benchmark.py", "models", "--models", "gfnet-x")
  assert done.returncode == 2
  assert done.stderr.startswith("error: ")
  assert done.stderr.count("\n") == 1
