"""Models of the Hugging Face hub, from a server on this machine, by the hub's own library."""

import dataclasses
import functools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import HANGS, ROOT, script_environment
from hub_server import COMMIT, serving
from PIL import Image

import gfnet_jax
from gfnet_jax.config_files import load_config
from gfnet_jax.inference.saved_model import SavedModel, check_source
from gfnet_jax.models.functional import split
from gfnet_jax.training.run import class_order
from gfnet_jax.weights import hub as hub_module
from gfnet_jax.weights.hub import parse_address

huggingface_hub = pytest.importorskip("huggingface_hub")

CONFIG = dict(name="gfnet-ti", image_size=64, num_classes=3, patch_size=16, embed_dim=8, depth=1)
NAMES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  directory = tmp_path_factory.mktemp("hub") / "model"
  model = gfnet_jax.create_model(**CONFIG)
  gfnet_jax.save_pretrained(SavedModel(model, CONFIG, NAMES), directory)
  return gfnet_jax.load_model(directory), directory


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
  """A hub with the model owner/tiny, in place of the one on the network."""
  with serving() as hub:
    hub.models["owner/tiny"] = shutil.copytree(saved[1], tmp_path / "served")
    (hub.models["owner/tiny"] / "pytorch_model.bin").write_bytes(b"a pickle")
    places = dict(endpoint=hub.address, cache_dir=tmp_path / "cache")
    download = functools.partial(huggingface_hub.hf_hub_download, **places)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    yield hub


def test_a_model_by_its_name_downloaded_once(saved, hub):
  for source in ("owner/tiny", "owner/tiny"):
    loaded = gfnet_jax.from_pretrained(source)
    for name, value in split(saved[0].model)[1].items():
      np.testing.assert_array_equal(value, split(loaded.model)[1][name])
    assert loaded.class_names == NAMES
  # No pickle, each file once, and both of one commit.
  assert [path for method, path in hub.asked if method == "GET"] == [
    "/owner/tiny/resolve/main/config.json",
    f"/owner/tiny/resolve/{COMMIT}/model.safetensors",
  ]


def test_a_revision_and_an_address(saved, hub, tmp_path):
  assert gfnet_jax.from_pretrained("owner/tiny", revision="v1").class_names == NAMES
  assert any("/v1/" in path for _, path in hub.asked)
  assert gfnet_jax.from_pretrained("hf://owner/tiny").class_names == NAMES
  with pytest.raises(gfnet_jax.UserError, match=r"revision is 'v1', but .* names one, too"):
    gfnet_jax.from_pretrained("hf://owner/tiny@main", revision="v1")
  for address in ("hf://owner/tiny", "hf://owner/tiny@v1", f"hf://owner/tiny@{COMMIT}"):
    assert gfnet_jax.load_model(address).class_names == NAMES
    check_source(address)
    config = load_config("digits")
    config.init_checkpoint = address
    assert class_order(config, tmp_path / "none") == NAMES


@pytest.mark.parametrize(
  ("source", "revision", "expected"),
  [
    ("owner/other", None, "has no model owner/other, or not for everyone"),
    ("owner/tiny", "v2\n", r"no owner/tiny at revision v2\\n; name a branch"),
    ("owner/gated", None, "owner/gated is gated"),
    ("owner/bare", None, r"owner/bare lacks config.json or model.safetensors"),
    ("owner/pickle", None, r"owner/pickle lacks config.json or model.safetensors"),
    ("own--er/tiny", None, r"cannot get own--er/tiny from the hub \(Cannot have --"),
  ],
)
def test_what_the_hub_refuses_is_one_line(hub, tmp_path, source, revision, expected):
  hub.models |= {"owner/gated": "GatedRepo", "owner/bare": tmp_path}
  hub.models["owner/pickle"] = shutil.copytree(hub.models["owner/tiny"], tmp_path / "pickle")
  (hub.models["owner/pickle"] / "model.safetensors").unlink()
  with pytest.raises(gfnet_jax.UserError, match=expected) as caught:
    gfnet_jax.from_pretrained(source, revision=revision)
  assert "\n" not in str(caught.value)


def test_weights_of_another_library_are_not_downloaded(hub):
  (hub.models["owner/tiny"] / "config.json").write_text('{"model_type": "vit"}')
  with pytest.raises(gfnet_jax.UserError, match="model_type is 'vit', expected 'gfnet'"):
    gfnet_jax.from_pretrained("owner/tiny")
  assert all(path.endswith("config.json") for _, path in hub.asked)


@pytest.mark.parametrize(
  ("file", "limit", "asked"), [("config.json", 100, 1), ("model.safetensors", 1000, 2)]
)
def test_what_is_too_large_is_not_downloaded(hub, monkeypatch, file, limit, asked):
  """Each file by a limit of its own; a config of 1000 bytes is none too large."""
  name = {"config.json": "LARGEST_TEXT", "model.safetensors": "MOST_BYTES"}[file]
  monkeypatch.setattr(hub_module, name, limit)
  with pytest.raises(gfnet_jax.UserError, match=rf"^{file} of owner/tiny has .* at most {limit:,}"):
    gfnet_jax.from_pretrained("owner/tiny")
  got = [path.rpartition("/")[2] for method, path in hub.asked if method == "GET"]
  assert got == ["config.json", "model.safetensors"][: asked - 1]


def test_the_advice_for_a_damaged_cache_helps(saved, hub):
  """It is the file behind the link that has to go."""
  gfnet_jax.from_pretrained("owner/tiny")
  [link] = (hub.models["owner/tiny"].parent / "cache").rglob("model.safetensors")
  content = bytearray(link.read_bytes())
  content[-1] ^= 1
  link.resolve().write_bytes(content)
  with pytest.raises(gfnet_jax.UserError, match=rf"damaged: .*; delete {link.resolve()}, and get"):
    gfnet_jax.from_pretrained("owner/tiny")
  link.resolve().unlink()
  assert gfnet_jax.from_pretrained("owner/tiny").class_names == NAMES


def test_a_private_model_needs_the_token(saved, hub, monkeypatch):
  hub.token = "hf_secret"
  with pytest.raises(gfnet_jax.UserError, match="set HF_TOKEN"):
    gfnet_jax.from_pretrained("owner/tiny")
  monkeypatch.setenv("HF_TOKEN", "hf_secret")
  assert gfnet_jax.from_pretrained("owner/tiny").class_names == NAMES


def test_damage_on_the_way_is_told(hub):
  weights = hub.models["owner/tiny"] / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-1] + b"x")
  with pytest.raises(gfnet_jax.UserError, match=r"model\.safetensors is damaged: its SHA-256 sum"):
    gfnet_jax.from_pretrained("owner/tiny")


def test_a_hub_that_is_away(saved, hub, monkeypatch):
  """What is in the cache still serves."""
  from huggingface_hub import constants

  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(gfnet_jax.UserError, match="cannot get owner/tiny from the hub"):
    gfnet_jax.from_pretrained("owner/tiny")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  gfnet_jax.from_pretrained("owner/tiny")
  asked = len(hub.asked)
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  assert gfnet_jax.from_pretrained("owner/tiny").class_names == NAMES
  assert len(hub.asked) == asked


def test_names_and_addresses():
  assert parse_address("hf://a/b") == parse_address(Path("hf://a/b")) == ("a/b", None)
  assert parse_address("hf://a/b@refs/pr/1") == ("a/b", "refs/pr/1")
  assert parse_address("runs/digits") is parse_address("gs://a/b") is None
  for source in ("hf://", "hf://a", "hf://a/b/c", "hf://a/b\n/c"):
    with pytest.raises(gfnet_jax.UserError, match="expected OWNER/NAME"):
      gfnet_jax.load_model(source)


def test_without_the_library(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(gfnet_jax.UserError, match="pip install huggingface_hub"):
    gfnet_jax.from_pretrained("owner/tiny")


def test_the_hub_reads_the_card(saved):
  """By the library that the hub's own tools use."""
  from huggingface_hub import ModelCard

  directory = saved[1].with_name("measured")
  measured = {"digits, test": {"top1": 97.5, "loss": 0.25, "images": 360}}
  gfnet_jax.save_pretrained(dataclasses.replace(saved[0], measured=measured), directory)
  data = ModelCard.load(directory / "README.md").data
  assert data.library_name == "gfnet_jax" and data.pipeline_tag == "image-classification"
  found = [(one.dataset_name, one.metric_name, one.metric_value) for one in data.eval_results]
  assert found == [
    ("digits, test", "top-1 accuracy (%)", 97.5),
    ("digits, test", "loss", 0.25),
  ]


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own(saved, hub, tmp_path):
  """By the environment variables of huggingface_hub; a connection that ends early is one line."""
  Image.new("RGB", (80, 80), "red").save(tmp_path / "photo.png")
  env = script_environment() | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
  command = [sys.executable, "-m", "gfnet_jax", "predict"]
  command += ["hf://owner/tiny", str(tmp_path / "photo.png")]
  options = dict(cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANGS)
  hub.cut = 1000
  result = subprocess.run(command, **options)
  assert result.returncode == 2
  assert result.stderr.splitlines()[-1].startswith("error: cannot get owner/tiny from the hub")
  assert "Traceback" not in result.stderr
  hub.cut = None
  result = subprocess.run(command, **options, check=True)
  [best] = saved[0].predict(tmp_path / "photo.png")
  assert [line.split()[1] for line in result.stdout.splitlines()[1:]] == [
    one.class_name for one in best
  ]
