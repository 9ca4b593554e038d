"""Weights as people have them: in other places, under prefixes, in several files."""

import json

import numpy as np
import pytest

from gfnet_jax.errors import UserError
from gfnet_jax.weights.files import read_state_dict, write_state_dict
from gfnet_jax.weights.pickles import Opaque
from gfnet_jax.weights.unwrap import find_state_dict

KEYS = (
  "pos_embed",
  "patch_embed.proj.weight",
  "blocks.0.norm1.weight",
  "norm.bias",
  "head.weight",
  "head.bias",
)
WEIGHTS = {key: np.full(2, i, np.float32) for i, key in enumerate(KEYS)}
OTHERS = {key: array + 100 for key, array in WEIGHTS.items()}
NUMBER = Opaque("numpy._core.multiarray.scalar", is_number=True)


def prefixed(prefix, weights=WEIGHTS):
  return {prefix + key: array for key, array in weights.items()}


def assert_found(content, expected=WEIGHTS, *, ema=False):
  found = find_state_dict(content, ema=ema)
  assert list(found) == list(expected)
  for key, array in expected.items():
    assert found[key] is array


@pytest.mark.parametrize(
  "wrap",
  [
    lambda weights: {"state_dict": weights, "epoch": 3, "arch": "gfnet"},
    lambda weights: {"model_state_dict": weights, "loss": 0.1},
    lambda weights: {"params": weights, "params_ema": OTHERS},
    lambda weights: {"state_dict": {"model": weights}, "acc": NUMBER},
    lambda weights: {"model": {"state_dict": {"net": weights}}},
    lambda weights: {"module": weights, "model": None, "dp_world_size": 8},
    lambda weights: {"network": weights, "model": "gfnet-ti", "state_dict": []},
    lambda weights: weights | {"epoch": 3, "accuracy": 0.8, "best": NUMBER},
  ],
)
def test_weights_are_found_where_training_code_puts_them(wrap):
  assert_found(wrap(WEIGHTS))


@pytest.mark.parametrize(
  "content",
  [
    {"state_dict": WEIGHTS, "state_dict_ema": OTHERS},
    {"model": WEIGHTS, "model_ema": {"module": OTHERS}},
    {"ema_state_dict": OTHERS},
    {"state_dict": {"model": WEIGHTS, "model_ema": OTHERS}},
    {"model_ema": prefixed("module._orig_mod.", OTHERS)},
    {"ema": {"state_dict": OTHERS}, "model": WEIGHTS},
  ],
)
def test_averaged_weights_are_found_where_they_are(content):
  assert_found(content, OTHERS, ema=True)


@pytest.mark.parametrize(
  "prefix",
  [
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.",
    "model._orig_mod.",
    "student.backbone.",
    "net.encoder.module.",
    "_forward_module.model.",
    "_fsdp_wrapped_module._orig_mod.model.",
  ],
)
def test_prefixes_that_all_keys_share_are_taken_off(prefix):
  assert_found(prefixed(prefix))
  assert_found({"state_dict": prefixed(prefix)})


def test_wrappers_of_single_modules_are_taken_off():
  renamed = {
    key.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module._orig_mod."): array
    for key, array in WEIGHTS.items()
  }
  assert_found(renamed)


def test_the_counter_of_averaged_models_is_no_weight():
  counter = Opaque("torch.int64", is_tensor=True)
  assert_found({"n_averaged": counter} | prefixed("module."))
  assert_found({"model": {"n_averaged": counter} | prefixed("module.")})


@pytest.mark.parametrize("head", ["head.", "head.fc."])
def test_mmpretrain_has_its_head_beside_the_backbone(head):
  keys = {
    key: key.replace("head.", head) if key.startswith("head.") else f"backbone.{key}"
    for key in WEIGHTS
  }
  content = {"meta": {"epoch": 1}, "state_dict": {keys[k]: a for k, a in WEIGHTS.items()}}
  assert_found(content)
  assert_found({"state_dict": prefixed("module.", content["state_dict"])})


@pytest.mark.parametrize(
  "others",
  [
    {"norm.weight": WEIGHTS["norm.bias"], "norm.bias": WEIGHTS["norm.bias"]},
    {"conv1.weight": WEIGHTS["norm.bias"], "conv1.bias": WEIGHTS["norm.bias"]},
    prefixed("model.") | {"criterion.weight": WEIGHTS["norm.bias"]},
    prefixed("a.b.c.d.e.f."),
    {".".join("a" * 100_000): WEIGHTS["norm.bias"]},
    {"": WEIGHTS["norm.bias"], ".": WEIGHTS["norm.bias"]},
  ],
)
def test_what_is_no_prefix_of_all_is_left_alone(others):
  assert_found(others, others)


@pytest.mark.parametrize(
  ("content", "match"),
  [
    ({"model": WEIGHTS, "state_dict": OTHERS}, "holds weights under 'model' and 'state_dict'"),
    ({"model": {"net": WEIGHTS, "params": OTHERS}}, "holds weights under 'net' and 'params'"),
    ({"model_ema": OTHERS, "epoch": 1}, "holds no 'model'.* found 'model_ema', 'epoch'; --ema"),
    ({"weights": {"a": WEIGHTS["norm.bias"]}}, "holds no 'model'"),
    ({"\x1b[2J": 1, "b" * 1000: "x"}, r"found '\\x1b\[2J', 'bbb"),
    (prefixed("_orig_mod.") | WEIGHTS, "names a tensor twice"),
    ({"state_dict": {"w\n": "text", "v": WEIGHTS["norm.bias"]}}, r"'w\\n' is a str, expected"),
  ],
)
def test_what_is_missing_or_ambiguous_is_told(content, match):
  with pytest.raises(UserError, match=match) as caught:
    find_state_dict(content, ema=False)
  assert str(caught.value).isprintable()


def test_nothing_is_looked_for_without_end():
  content = {"model": None}
  content["model"] = content
  with pytest.raises(UserError, match="holds no 'model'"):
    find_state_dict(content, ema=False)


# --- several files with an index -----------------------------------------------------------


@pytest.fixture
def sharded(tmp_path):
  """The index of WEIGHTS in three files of safetensors."""
  keys = list(WEIGHTS)
  names = [f"model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
  for i, name in enumerate(names):
    write_state_dict(tmp_path / name, {key: WEIGHTS[key] for key in keys[i::3]})
  shards = {key: names[i % 3] for i, key in enumerate(keys)}
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps(dict(metadata=dict(total_size=48), weight_map=shards), indent=2))
  return index


def test_weights_in_several_files_are_read_by_their_index(sharded):
  read = read_state_dict(sharded)
  assert list(read) == list(WEIGHTS)
  for key, array in WEIGHTS.items():
    np.testing.assert_array_equal(read[key], array, strict=True)


def test_shards_of_pytorch_are_read_as_well(tmp_path):
  torch = pytest.importorskip("torch")
  for name, keys in {"a.bin": KEYS[:2], "b.bin": KEYS[2:]}.items():
    torch.save({key: torch.from_numpy(WEIGHTS[key]) for key in keys}, tmp_path / name)
  shards = {key: "a.bin" if key in KEYS[:2] else "b.bin" for key in KEYS}
  index = tmp_path / "pytorch_model.bin.index.json"
  index.write_text(json.dumps(dict(weight_map=shards)))
  read = read_state_dict(index)
  assert all(np.array_equal(read[key], WEIGHTS[key]) for key in KEYS)


@pytest.mark.parametrize(
  ("change", "match"),
  [
    (lambda shards: shards.update(extra=shards["norm.bias"]), "does not hold the tensors that"),
    (lambda shards: shards.pop("norm.bias"), "does not hold the tensors that"),
    (lambda shards: shards.update({"norm.bias": shards["head.bias"]}), "does not hold the tensors"),
    (
      lambda shards: shards.update({"norm.bias": "absent.bin"}),
      "names absent.bin, which is not beside it",
    ),
    (lambda shards: shards.update({"norm.bias": "../absent.bin"}), "expected a file beside it"),
    (lambda shards: shards.update({"norm.bias": "/etc/passwd"}), "expected a file beside it"),
    (lambda shards: shards.update({"norm.bias": ".."}), "expected a file beside it"),
    (lambda shards: shards.update({"norm.bias": "x" * 300}), "expected a file beside it"),
    (lambda shards: shards.update({"norm.bias": "\x1b[2J/"}), r"index names '\\x1b\[2J/'"),
    (lambda shards: shards.update({"norm.bias": 3}), "is not a table of names"),
    (lambda shards: shards.update({"norm.bias": "model.safetensors.index.json"}), "does not hold"),
  ],
)
def test_an_index_that_does_not_fit_its_files_is_told(sharded, change, match):
  content = json.loads(sharded.read_text())
  change(content["weight_map"])
  sharded.write_text(json.dumps(content))
  with pytest.raises(UserError, match=match) as caught:
    read_state_dict(sharded)
  assert str(caught.value).isprintable()


def test_a_shard_that_is_damaged_is_named(sharded):
  shard = sharded.with_name("model-00002-of-00003.safetensors")
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(UserError, match=r"model-00002-of-00003\.safetensors cannot be used"):
    read_state_dict(sharded)
