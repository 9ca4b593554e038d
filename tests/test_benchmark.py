"""The benchmarks of computations at a small size: rows, files, mistakes."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import compiled, random_model

from gfnet_jax.errors import UserError
from gfnet_jax.models.mixers import MIXERS
from gfnet_jax.models.variants import create_model, list_models

SMALL = ("--models", "gfnet-ti", "--rounds", "2")


def run(script, tmp_path, *arguments):
  """The rows and the whole result of a benchmark."""
  path = tmp_path / "new" / "result.json"
  done = script("tools/benchmark.py", *arguments, "--output", path)
  assert done.returncode == 0, done.stderr
  result = json.loads(path.read_text())
  assert result["machine"]["versions"]["jax"]
  assert result["machine"]["load_before"] >= 0 <= result["machine"]["load_after"]
  for row in result["rows"]:
    assert all(str(column) in done.stdout for column in row)
  return result["rows"]


@pytest.mark.slow
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

  model = random_model(lambda: create_model("gfnet-ti", image_size=32, depth=2), 0.02)
  (found,) = _models.filters_alone(model, 2)()
  (key,) = jax.random.split(jax.random.key(0), 1)
  expected = 1e10 * jax.random.normal(key, (2, 2, 2, 256))
  for block in model.blocks:
    expected = compiled(block.filter)(expected)
  scale = float(jnp.abs(expected).max())
  assert scale > 1e-30  # normal numbers to the end
  np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


PAPER = {  # of the authors' script, in G, at 224 and 384 pixels
  224: (1.2878, 2.8566, 4.4888, 7.9375, 2.0840, 4.6481, 8.6120),
  384: (None, 8.4047, 13.2075, 23.3478),
}


def test_the_official_convention_counts_what_the_authors_script_does(monkeypatch):
  monkeypatch.syspath_prepend("tools")
  from benchmarks import _operations, flops

  for size, figures in PAPER.items():
    for name, figure in zip(list_models(), figures, strict=False):
      model = nnx.eval_shape(lambda name=name, size=size: create_model(name, image_size=size))
      if figure:
        counted = _operations.CONVENTIONS["official"](_operations.of_network(model)) / 1e9
        assert counted == pytest.approx(figure, abs=5.1e-5)
        assert flops.rounds_to(counted, flops.PAPER[name, size])


@pytest.mark.parametrize(
  ("mixer", "products", "transforms", "norms"),
  [  # of 2 x 2 tokens of four channels, by hand
    ("identity", 0, 0, 0),
    ("global-filter", 0, 2 * 16 * 2, 0),
    ("fnet", 0, 16 * 4, 0),  # 16 points are transformed at once
    ("conv3", 16 * 9, 0, 0),
    ("conv5", 16 * 25, 0, 0),
    ("conv7", 16 * 49, 0, 0),
    ("spatial-mlp", 16 * 4, 0, 0),
    ("attention", 16 * (3 * 4 + 4) + 16 * 4 + 16 * 4, 0, 0),
    ("global-local", 8 * 9, 2 * 8 * 2, 2 * 16 * 5),
  ],
)
def test_operations_of_a_small_network_by_hand(monkeypatch, mixer, products, transforms, norms):
  monkeypatch.syspath_prepend("tools")
  from benchmarks import _operations

  sizes = dict(image_size=32, embed_dim=4, depth=2, num_classes=3)
  model = nnx.eval_shape(lambda: create_model("gfnet-ti", mixer=mixer, **sizes))
  patches, mlp, head = 4 * 768 * 4, 4 * 2 * 4 * 16, 4 * 3
  assert _operations.of_network(model) == (
    patches + 2 * (mlp + products) + head,
    2 * transforms,
    2 * (2 * 16 * 5 + norms) + 16 * 5,
  )


def test_operations_of_every_mixer_are_known(monkeypatch):
  monkeypatch.syspath_prepend("tools")
  from benchmarks import _operations

  assert set(_operations.RULES) == set(MIXERS)
  with pytest.raises(UserError, match="operations of the mixer 'own' are not known, expected one"):
    _operations.of_mixer("own", 4, 4)


def test_rows_that_a_convention_does_not_print_are_named(monkeypatch, capsys):
  monkeypatch.syspath_prepend("tools")
  from benchmarks import flops

  options = SimpleNamespace(models=[], image_sizes=[], mixers=["conv3", "identity"], output=None)
  flops.run(options)
  printed = capsys.readouterr().out.splitlines()
  assert "official: does not print the paper's figure of gfnet-xs conv3 224 (2.8)" in printed
  assert "multiply-adds: does not print the paper's figure of none" in printed
  row = next(line.split() for line in printed if " conv3 " in line)
  assert row[3:8] == ["14999656", "2.84085", "2.84085", "2.85026", "2.8"]
  assert float(row[-1]) == pytest.approx(2 * 2.84085, rel=0.01), "XLA counts a little more"
  options.mixers = ["con3"]
  with pytest.raises(UserError, match=r"unknown mixer 'con3'.*did you mean conv3"):
    flops.run(options)


def test_a_plot_of_another_kind_is_refused_before_the_work(tmp_path, in_process, monkeypatch):
  monkeypatch.syspath_prepend("tools")  # as Python does for a script
  code, output, error = in_process(
    "tools/benchmark.py", "layer", "--figure", tmp_path / "layer.jpg"
  )
  assert (code, output) == (2, "")
  assert f"error: the picture is {tmp_path}/layer.jpg, expected a name that ends in" in error


@pytest.mark.slow
def test_layer(script, tmp_path):
  sizes = ("--sides", 4, 8, "--width", 64, "--batch-size", 2)
  figure = tmp_path / "figures" / "layer.svg"
  rows = run(script, tmp_path, "layer", *sizes, "--rounds", 2, "--figure", figure)
  layers = {"copy", "global-filter", "attention", "spatial-mlp", "conv3"}
  assert {row["layer"] for row in rows[:5]} == layers
  assert rows[0]["layer"] == "copy"
  assert rows[0]["of_copy"] == 1
  found = {(row["layer"], row["grid"]): row for row in rows}
  assert found["spatial-mlp", "8x8"]["operations_g"] == 64 * 64 * 64 / 1e9
  assert found["copy", "8x8"]["temporary_mb"] == 0
  assert all(row["peak_mb"] is None or row["peak_mb"] >= 0 for row in rows)
  assert figure.read_text().count('id="axes_') == 3
  left_out = run(script, tmp_path, "layer", *sizes, "--memory", 2.5e-5)
  absent = found.keys() - {(row["layer"], row["grid"]) for row in left_out}
  assert absent == {("attention", "8x8")}, "its scores take 33 kB, the kernel of the MLP 16 kB"


@pytest.mark.slow
def test_onnx(script, tmp_path):
  pytest.importorskip("onnxruntime")
  pytest.importorskip("torch")
  rows = run(script, tmp_path, "onnx", *SMALL, "--image-size", 32, "--batch-sizes", 1, 2)
  assert [row["batch"] for row in rows] == [1, 2]
  for row in rows:
    assert row["weights_mb"] < row["float32_mb"] < 1.1 * row["weights_mb"]
    assert row["int8_mb"] < row["float16_mb"] < row["float32_mb"]
    assert 0 < row["float16_off"] < row["int8_off"] < row["deviation"]


@pytest.mark.slow
def test_accuracy_of_onnx(script, tmp_path):
  pytest.importorskip("onnxruntime")
  options = ("--config.num_epochs=1", "--config.optimizer.warmup_epochs=0")
  done = script("train.py", "--workdir", tmp_path / "run", *options)
  assert done.returncode == 0, done.stderr
  rows = run(script, tmp_path, "onnx_accuracy", "--checkpoint", tmp_path / "run")
  assert [row["weights"] for row in rows] == ["jax", "float32", "float16", "int8"]
  last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
  assert rows[0]["top1"] == pytest.approx(last["eval_top1"])
  assert rows[0]["images"] == 360
  assert rows[1]["named_otherwise"] == 0 and rows[1]["largest_off"] < 1e-5


def test_memory_that_a_call_adds_to_a_device_is_told_if_it_is_a_new_peak(monkeypatch):
  monkeypatch.syspath_prepend("tools")
  from benchmarks import _memory

  memory = {"bytes_in_use": 100, "peak_bytes_in_use": 150}
  device = SimpleNamespace(memory_stats=lambda: dict(memory))
  monkeypatch.setattr(_memory.jax, "devices", lambda: [device])
  assert _memory.added_peak(lambda: memory.update(peak_bytes_in_use=190)) == 90
  assert _memory.added_peak(lambda: None) is None


def test_memory_that_a_call_adds_to_the_host(monkeypatch, tmp_path):
  monkeypatch.syspath_prepend("tools")
  from benchmarks import _memory

  found = _memory.added_peak(lambda: np.ones(50_000_000, np.uint8).sum())
  if found is None:
    pytest.skip("this system does not tell")
  assert 49e6 < found < 150e6
  monkeypatch.setattr(_memory, "PEAKS", tmp_path / "absent" / "clear_refs")
  assert _memory.added_peak(lambda: pytest.fail("is called")) is None


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

  calls, pages = [], iter([0, 5000, 5000, 5000])
  monkeypatch.setattr(_measure, "_fresh_pages", lambda: next(pages))
  functions = {name: (lambda name=name: calls.append(name)) for name in "ab"}
  times = _measure.time_in_turns(functions, rounds=3)
  assert calls == [*"aabb", *"abab", *"abbaab"], "two rounds, one with fresh memory, don't count"
  assert [len(seconds) for seconds in times.values()] == [3, 3]
  assert _measure.ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0])[1] == pytest.approx(2)
  np.testing.assert_allclose(_measure.quartiles_ms([0.5]), 500)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["highest", "bf16"])
def test_torch(script, tmp_path, precision):
  pytest.importorskip("torch")
  options = ("--image-size", 32, "--batch-size", 2, "--precision", precision)
  inference, training = run(script, tmp_path, "torch", *SMALL, *options)
  ways = ["eager", "autocast"] if precision == "bf16" else ["eager"]
  assert inference["difference"] <= inference["at_most"], "it is the same network"
  if precision == "highest":
    assert inference["at_most"] < 1e-4
    assert inference["difference_to_float32"] is None
  else:  # rounded to bfloat16, but not in every sum
    assert 1e-4 < inference["difference_to_float32"] <= inference["at_most"]
    assert inference["difference_to_float32"] == pytest.approx(inference["difference"], rel=1e-2)
  for row in (inference, training):
    assert [name.removesuffix("/jax") for name in row if name.endswith("/jax")] == ways
    for way in ways:
      assert row[f"{way}_low"] <= row[f"{way}/jax"] <= row[f"{way}_high"]


def test_only_with_a_device_of_its_own_is_pytorch_beside(monkeypatch):
  pytest.importorskip("torch")
  monkeypatch.syspath_prepend("tools")
  from benchmarks import torch as beside_torch

  assert beside_torch.torch_device() == "cpu"
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  with pytest.raises(UserError, match="jax computes on tpu, where this PyTorch has no device"):
    beside_torch.torch_device()
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(beside_torch.torch.cuda, "is_available", lambda: True)
  assert beside_torch.torch_device() == "cuda"
  monkeypatch.setattr(beside_torch.torch.cuda, "is_available", lambda: False)
  with pytest.raises(UserError, match="jax computes on gpu, where"):
    beside_torch.torch_device()


def test_bounds_of_logits(monkeypatch):
  monkeypatch.syspath_prepend("tools")
  from benchmarks.torch import at_most

  assert at_most("highest", 224) == at_most("default", 224) == 2e-5
  assert (at_most("bf16", 384), at_most("bf16", 224), at_most("bf16", 32)) == (5e-3, 5e-3, 1e-2)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert (at_most("highest", 224), at_most("default", 224)) == (2e-5, 5e-3)


@pytest.mark.parametrize(("platform", "waited"), [("cpu", [1, 2, 3, 3]), ("gpu", [3])])
def test_an_accelerator_queues_the_calls_of_a_turn(monkeypatch, platform, waited):
  """While the last is waited for; a CPU would run them at once."""
  monkeypatch.syspath_prepend("tools")
  from benchmarks import _measure

  found = []
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  monkeypatch.setattr(jax, "block_until_ready", found.append)
  _measure._seconds(iter([1, 2, 3]).__next__, 3)
  assert found == waited


@pytest.mark.parametrize("width", [4, 5])
def test_the_filter_in_float64_and_its_gradients(monkeypatch, width):
  """The result by the formula of the paper; the gradients by differences, as it is bilinear."""
  monkeypatch.syspath_prepend("tools")
  from benchmarks import correctness

  rng = np.random.default_rng(0)
  tokens, cotangent, other = rng.standard_normal((3, 2, 6, width, 3))
  weight, other_weight = rng.standard_normal((2, 2, 6, width // 2 + 1, 3))

  def filtered(tokens, weight):
    spectrum = np.fft.rfft2(tokens, axes=(1, 2), norm="ortho") * (weight[0] + 1j * weight[1])
    return np.fft.irfft2(spectrum, s=(6, width), axes=(1, 2), norm="ortho")

  result, of_tokens, of_weight = correctness.filter_in_float64(tokens, weight, cotangent)
  np.testing.assert_allclose(result, filtered(tokens, weight), atol=1e-13)
  by_tokens = (cotangent * filtered(other, weight)).sum()
  assert (of_tokens * other).sum() == pytest.approx(by_tokens, rel=1e-12)
  by_weight = (cotangent * filtered(tokens, other_weight)).sum()
  assert (of_weight * other_weight).sum() == pytest.approx(by_weight, rel=1e-12)


@pytest.mark.parametrize("error", [0.0, 3e-3, np.nan])
def test_a_filter_in_one_pass_of_bfloat16_is_noticed(monkeypatch, error):
  monkeypatch.syspath_prepend("tools")
  from benchmarks import _measure, correctness

  def compute(*arguments):
    *arrays, backend = arguments
    exact = correctness.filter_in_float64(*arrays)
    return [array * (1 + error) for array in exact] if backend == "separable" else exact

  monkeypatch.setattr(correctness, "filter_and_gradients", compute)
  rows = list(correctness.filters(SimpleNamespace(backends=None, largest=12)))
  assert {row["case"].partition(" ")[0] for row in rows} == {"7x7", "12x12"}
  if error == 0:
    _measure.check_differences(rows)
    return
  with pytest.raises(UserError) as refusal:
    _measure.check_differences(rows)
  said = "nan" if np.isnan(error) else "0.003"
  assert str(refusal.value).startswith(
    f"difference of filter 7x7 separable is {said}, expected at most 2e-05, and 5 more; the results"
  )


def test_what_exceeds_its_bound_is_kept_and_then_refused(monkeypatch, tmp_path, capsys):
  monkeypatch.syspath_prepend("tools")
  from benchmarks import _measure

  options = SimpleNamespace(output=tmp_path / "result.json")
  row = {"model": "gfnet-ti", "ms": 3.0, "difference": 2e-3, "at_most": 1e-3}
  good = row | {"difference": None, "at_most": None}
  _measure.report("title", [good, row | {"at_most": 2e-3}], options)
  with pytest.raises(UserError, match=r"of gfnet-ti is 0\.002, expected at most 0\.001;"):
    _measure.report("title", [good, row], options)
  assert json.loads(options.output.read_text())["rows"][1] == row
  assert "0.002" in capsys.readouterr().out


@pytest.mark.parametrize(("load", "warned"), [(0.5, False), (4.2, False), (5.3, True)])
def test_a_busy_machine_is_warned_of(monkeypatch, capsys, load, warned):
  monkeypatch.syspath_prepend("tools")
  from benchmarks import _measure

  monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
  monkeypatch.setattr("os.cpu_count", lambda: 4)
  _measure.report("title", [{"ms": 1.0}], SimpleNamespace(output=None))
  printed, errors = capsys.readouterr()
  assert json.loads(printed.splitlines()[0])["load_after"] == load
  _measure.report("title", [{"ms": 1.0}], SimpleNamespace(output=None, timed=False))
  assert capsys.readouterr().err == ""
  line = f"warning: after the benchmark the load of this machine is {load} on 4 cores; "
  assert errors.startswith(line) if warned else not errors


@pytest.mark.slow
def test_backends(script, tmp_path):
  rows = run(script, tmp_path, "backends", "--batch-size", 1, "--rounds", 2, "--largest", 7)
  assert {row["grid"] for row in rows} == {"7x7x512", "7x7x768"}
  for grid in {row["grid"] for row in rows}:
    ratios = [row["to_the_best"] for row in rows if row["grid"] == grid]
    assert min(ratios) == 1
    assert sum(row["auto"] == "*" for row in rows if row["grid"] == grid) == 1
  rows = run(script, tmp_path, "backends", "--rounds", 2, "--grids", "5x6x4", "5x6x4")
  assert [row["grid"] for row in rows] == ["5x6x4"] * 3


def test_mistakes(script):
  done = script("tools/benchmark.py", "models", "--models", "gfnet-x")
  assert done.returncode == 2
  assert done.stderr.startswith("error: ")
  assert done.stderr.count("\n") == 1
