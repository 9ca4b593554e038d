"""convert_torch_weights.py from end to end: both directions, and what it refuses."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled, random_model

from gfnet_jax.checkpoints.model import read_model, save_model
from gfnet_jax.command_line import run
from gfnet_jax.models.mixers import MIXERS
from gfnet_jax.models.variants import VARIANTS, create_model
from gfnet_jax.weights.convert import read_torch_model
from gfnet_jax.weights.files import read_state_dict, write_state_dict
from gfnet_jax.weights.state_dict import to_torch_state_dict

torch = pytest.importorskip("torch")
reference = pytest.importorskip("gfnet_jax.weights.reference")

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "convert_torch_weights.py"
NAME = "gfnet-ti"


@pytest.fixture(scope="module")
def weights():
  return reference.golden_weights(reference.shapes(reference.create(NAME)))


@pytest.fixture(scope="module")
def files(weights, tmp_path_factory):
  """The same weights as .pth and as .safetensors, by suffix."""
  directory = tmp_path_factory.mktemp("official")
  files = {suffix: directory / f"{NAME}{suffix}" for suffix in (".pth", ".safetensors")}
  for path in files.values():
    write_state_dict(path, weights)
  return files


@pytest.fixture
def small_files(tmp_path, monkeypatch):
  """As `files`, of two narrow blocks: meanwhile those are gfnet-ti."""
  kind, settings = VARIANTS[NAME]
  monkeypatch.setitem(VARIANTS, NAME, (kind, settings | dict(embed_dim=16, depth=2)))
  model = random_model(lambda: create_model(NAME, image_size=64))
  files = {suffix: tmp_path / f"{NAME}{suffix}" for suffix in (".pth", ".safetensors")}
  for path in files.values():
    write_state_dict(path, to_torch_state_dict(model))
  return files


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
  """The directory of a converted checkpoint; not to be changed."""
  directory = tmp_path_factory.mktemp("runs") / NAME
  runpy.run_path(str(SCRIPT))["main"]([str(files[".pth"]), str(directory)])
  return directory


@pytest.fixture
def convert(monkeypatch, capsys):
  """convert(*arguments) -> (exit code, standard output, standard error)."""

  def convert(*arguments):
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *map(str, arguments)])
    capsys.readouterr()
    code = run(runpy.run_path(str(SCRIPT))["main"])
    return code, *capsys.readouterr()

  return convert


@pytest.fixture
def refused(convert, tmp_path):
  """Asserts exit code 2, one line that matches, and that nothing was written."""

  def refused(match, source, *arguments):
    destination = tmp_path / "destination"
    code, output, error = convert(source, destination, *arguments)
    assert (code, output) == (2, "")
    assert re.fullmatch(r"error: [^\n]*\n", error)
    assert re.search(match, error), error
    assert not destination.exists()

  return refused


def changed(content, position, flip):
  copy = bytearray(content)
  copy[position] ^= flip
  return bytes(copy)


@pytest.mark.parity
def test_a_converted_file_gives_the_official_logits(converted):
  model, metadata = read_model(converted, precision="highest")
  assert metadata["model"] == dict(name=NAME, image_size=224, num_classes=1000)
  images = np.random.default_rng(0).standard_normal((2, 224, 224, 3)).astype(np.float32)
  golden = np.load(ROOT / f"tests/golden/logits_{NAME}_224.npz")["logits"]
  np.testing.assert_allclose(compiled(model)(images), golden, rtol=0, atol=5e-6)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_back_to_pytorch_is_bit_equal(converted, weights, convert, tmp_path, suffix):
  path = tmp_path / f"back{suffix}"
  code, output, _ = convert("--to-torch", converted, path)
  assert code == 0
  assert output == f"Wrote {path}: name {NAME}, image_size 224, num_classes 1000\n"
  back = read_state_dict(path)
  assert list(back) == list(weights)
  for key, array in weights.items():
    np.testing.assert_array_equal(back[key], array, strict=True)
  if suffix == ".pth":
    content = torch.load(path, weights_only=True)["model"]
    reference.create(NAME).load_state_dict(content, strict=True, assign=True)


def test_another_size_and_number_of_classes(small_files, convert, tmp_path):
  directory = tmp_path / "fine-tune"
  options = ("--image-size", "64x96", "--num-classes", 3)
  code, *_ = convert(small_files[".safetensors"], directory, *options)
  assert code == 0
  model, _ = read_model(directory)
  assert jax.eval_shape(model, np.zeros((1, 64, 96, 3), np.float32)).shape == (1, 3)


def test_a_wrapped_file_without_a_head_for_grey_images(weights, convert, tmp_path):
  path, directory = tmp_path / "weights.pth", tmp_path / "grey"
  wrapped = {
    f"module._orig_mod.{key}": torch.from_numpy(array)
    for key, array in weights.items()
    if not key.startswith("head.")
  }
  torch.save({"state_dict": wrapped, "accuracy": np.float64(0.8)}, path)
  code, output, error = convert(path, directory)
  assert (code, output) == (2, "")
  assert "have no head" in error
  assert not directory.exists()
  code, output, _ = convert(path, directory, "--num-classes", 3, "--in-channels", 1)
  assert (code, output.count("\n")) == (0, 1)
  assert output.endswith(f"name {NAME}, image_size 224, num_classes 3, in_dim 1\n")
  model, _ = read_model(directory)
  assert model.patch_embed.in_dim == 1
  assert 0 < np.abs(model.head.kernel[...]).max() < 0.1
  stem = weights["patch_embed.proj.weight"].sum(1)
  np.testing.assert_allclose(
    model.patch_embed.proj.kernel[...], stem.transpose(1, 2, 0).reshape(256, -1), rtol=1e-6
  )


def test_a_file_is_read_as_a_model_without_a_checkpoint(files, weights):
  model, config = read_torch_model(files[".pth"], "bf16")
  assert config == dict(name=NAME, image_size=224, num_classes=1000)
  assert model.head.dtype == jnp.bfloat16
  np.testing.assert_array_equal(model.norm.bias[...], weights["norm.bias"])


@pytest.mark.parametrize("mixer", ["own", "conv3"])
def test_a_model_with_another_mixer_is_not_exported(convert, tmp_path, monkeypatch, mixer):
  monkeypatch.setitem(MIXERS, "own", type("Own", (MIXERS["global-filter"],), {}))
  config = dict(name=NAME, image_size=32, depth=1, mixer=mixer)
  save_model(tmp_path / "own", random_model(lambda: create_model(**config)), config)
  code, output, error = convert("--to-torch", tmp_path / "own", tmp_path / "own.pth")
  assert (code, output) == (2, "")
  message = rf"error: the model mixes tokens by '{mixer}', but the official [^\n]*\n"
  assert re.fullmatch(message, error)
  assert not (tmp_path / "own.pth").exists()


def test_damage_is_refused(small_files, refused, tmp_path):
  rng = np.random.default_rng(0)
  content = small_files[".pth"].read_bytes()
  path = tmp_path / "damaged.pth"
  for length in (0, 1000, len(content) // 2, len(content) - 1):
    path.write_bytes(content[:length])
    refused("cannot be used", path)
  path.write_bytes(rng.bytes(10_000))
  refused("neither a PyTorch file nor safetensors", path)
  path.write_bytes(b"<!DOCTYPE html><html><body>Sign in</body></html>")
  refused("is an HTML page", path)
  for position in rng.integers(len(content), size=20):
    path.write_bytes(changed(content, position, rng.integers(1, 256)))
    refused("zip archive is damaged", path)


def test_damage_of_a_safetensors_header_is_refused(small_files, refused, tmp_path):
  rng = np.random.default_rng(0)
  content = small_files[".safetensors"].read_bytes()
  path = tmp_path / "damaged.safetensors"
  header = 8 + int.from_bytes(content[:8], "little")
  for position in [*range(9), *rng.integers(9, header, size=20)]:
    path.write_bytes(changed(content, position, 1))
    refused("header|is of type|neither|do not fit|fit none", path)


def test_what_does_not_fit_is_refused(files, weights, refused, tmp_path):
  path = tmp_path / "other.safetensors"
  refused("do not fit the model: 63 missing", files[".pth"], "--arch", "gfnet-s")
  refused("unknown model 'gfnet-z'", files[".pth"], "--arch", "gfnet-z")
  refused("not divisible", files[".pth"], "--image-size", "100")
  refused("SHA-256 sum", files[".pth"], "--sha256", "0" * 64)
  refused("holds no 'model_ema'", files[".pth"], "--ema")
  write_state_dict(path, {"conv1.weight": np.zeros((2, 2), np.float32)})
  refused("fit none of the variants", path)
  path.unlink()
  write_state_dict(path, {key: array for key, array in weights.items() if key != "pos_embed"})
  refused(r"1 missing \(pos_embed\)", path)
  path.unlink()
  write_state_dict(path, weights | {"norm.bias": np.full_like(weights["norm.bias"], np.nan)})
  refused("NaN", path)


def test_flags_that_do_not_belong_together_are_refused(refused):
  refused("--to-torch takes no --image-size", "x", "--to-torch", "--image-size", "32")
  refused("--to-torch takes no --in-channels", "x", "--to-torch", "--in-channels", "1")
  refused("--to-torch takes no --arch", "x", "--to-torch", "--arch", NAME)
  refused("--which needs --to-torch", "x", "--which", "best")
  refused("'-1' is not a positive integer", "x", "--num-classes=-1")
  refused("'1000000' is not a positive integer up to 100000", "x", "--num-classes", "1000000")
  refused("'5000' is not a positive integer up to 4096", "x", "--image-size", "64x5000")
  refused("is not a positive integer", "x", "--image-size", "9" * 5000)


def test_a_checkpoint_is_not_overwritten(converted, files, convert):
  before = sorted(converted.rglob("*"))
  code, _, error = convert(files[".pth"], converted)
  assert code == 2
  assert "holds checkpoints already" in error
  assert sorted(converted.rglob("*")) == before


def test_links_out_of_a_checkpoint_are_not_followed(converted, convert, tmp_path):
  copy = tmp_path / "copy"
  subprocess.run(["cp", "-r", converted, copy], check=True)
  largest = max((p for p in copy.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  outside = tmp_path / "outside"
  largest.rename(outside)
  largest.symlink_to(outside)
  code, _, error = convert("--to-torch", copy, tmp_path / "back.pth")
  assert code == 2
  assert "is damaged" in error
  assert not (tmp_path / "back.pth").exists()


MEASURE = """
import sys, threading, time
from pathlib import Path
import jax, torch
from gfnet_jax.weights.convert import import_weights

def resident():
  return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

jax.devices()
baseline = peak = resident()
done = threading.Event()

def watch():
  global peak
  while not done.wait(0.002):
    peak = max(peak, resident())

watcher = threading.Thread(target=watch)
watcher.start()
start = time.monotonic()
import_weights(sys.argv[1], Path(sys.argv[2]))
seconds = time.monotonic() - start
done.set()
watcher.join()
print(seconds, peak - baseline)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory from /proc")
def test_the_largest_variant_converts_in_little_memory(tmp_path):
  file = tmp_path / "gfnet-h-b.pth"
  write_state_dict(file, reference.golden_weights(reference.shapes(reference.create("gfnet-h-b"))))
  result = subprocess.run(
    [sys.executable, "-c", MEASURE, str(file), str(tmp_path / "out")],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  seconds, memory = map(float, result.stdout.split())
  print(f"{seconds:.1f} s")  # a busy machine is no failure
  assert memory < 3 * file.stat().st_size


def test_the_script_says_one_line_and_exits_with_2(script, tmp_path):
  result = script("convert_torch_weights.py", "nowhere.pth", tmp_path / "out")
  assert result.returncode == 2
  assert re.fullmatch(r"error: nowhere.pth is not a file, expected [^\n]*\n", result.stderr)
