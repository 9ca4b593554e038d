"""Files of weights: every format and wrapping is read, no damage or code gets through."""

import argparse
import collections
import json
import os
import struct
import sys
import zipfile

import numpy as np
import pytest

from gfnet_jax.errors import UserError
from gfnet_jax.weights.files import read_state_dict, write_state_dict

torch = pytest.importorskip("torch")

FLIPS = (0x01, 0x10, 0x20, 0x80, 0xFF)


@pytest.fixture
def weights():
  rng = np.random.default_rng(0)
  return {
    "norm.weight": rng.standard_normal((3, 4)).astype(np.float32),
    "norm.bias": rng.standard_normal(5).astype(np.float32),
  }


@pytest.fixture
def file(tmp_path):
  return tmp_path / "weights.pth"


def to_torch(weights):
  return collections.OrderedDict((key, torch.from_numpy(a)) for key, a in weights.items())


def equal(actual, expected):
  return list(actual) == list(expected) and all(
    np.array_equal(actual[key], expected[key]) for key in expected
  )


def refused(path, match):
  """Whether a file is refused, with one line that matches."""
  with pytest.raises(UserError, match=match) as caught:
    read_state_dict(path)
  assert "\n" not in str(caught.value)
  assert len(str(caught.value)) < 500


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_written_is_read_again(weights, tmp_path, suffix):
  path = tmp_path / f"weights{suffix}"
  write_state_dict(path, weights)
  assert equal(read_state_dict(path), weights)
  assert list(tmp_path.iterdir()) == [path]


def test_pytorch_reads_what_is_written(weights, file):
  write_state_dict(file, weights)
  content = torch.load(file, weights_only=True)
  assert equal({key: t.numpy() for key, t in content["model"].items()}, weights)


def test_safetensors_are_those_of_the_library(weights, tmp_path):
  library = pytest.importorskip("safetensors.torch")
  path = tmp_path / "ours.safetensors"
  write_state_dict(path, weights)
  read = {key: t.numpy() for key, t in library.load_file(path).items()}
  assert equal({key: read[key] for key in weights}, weights)
  library.save_file(to_torch(weights), tmp_path / "theirs.safetensors")
  read = read_state_dict(tmp_path / "theirs.safetensors")
  assert equal({key: read[key] for key in weights}, weights)


@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoints_with_a_namespace_are_read(weights, file, zipped):
  checkpoint = dict(
    model=to_torch(weights),
    model_ema=to_torch({key: array + 1 for key, array in weights.items()}),
    optimizer=dict(state={0: dict(step=1)}, param_groups=[dict(lr=0.1)]),
    args=argparse.Namespace(lr=5e-4, opt_betas=None, output_dir="x"),
    epoch=3,
  )
  torch.save(checkpoint, file, _use_new_zipfile_serialization=zipped)
  assert equal(read_state_dict(file), weights)
  averaged = read_state_dict(file, ema=True)
  assert equal(averaged, {key: array + 1 for key, array in weights.items()})


def test_bare_state_dicts_and_the_prefix_of_distributed_training_are_read(weights, file):
  torch.save({f"module.{key}": torch.from_numpy(array) for key, array in weights.items()}, file)
  assert equal(read_state_dict(file), weights)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(weights, tmp_path, dtype, suffix):
  library = pytest.importorskip("safetensors.torch")
  path = tmp_path / f"weights{suffix}"
  content = {key: t.to(dtype) for key, t in to_torch(weights).items()}
  torch.save(content, path) if suffix == ".pth" else library.save_file(content, path)
  read = read_state_dict(path)
  assert equal({key: read[key] for key in content}, {k: t.float() for k, t in content.items()})
  assert all(array.dtype == np.float32 for array in read.values())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_unless_allowed(weights, file, value):
  weights["norm.bias"][2] = value
  write_state_dict(file, weights)
  refused(file, "norm.bias hold NaN or infinite values")
  np.testing.assert_array_equal(
    read_state_dict(file, allow_nan=True)["norm.bias"], weights["norm.bias"]
  )


class CreatesFile:
  """A pickle of this would create a file when it is loaded."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(weights, file, tmp_path, zipped):
  evidence = tmp_path / "evidence"
  content = dict(model=to_torch(weights), args=CreatesFile(evidence))
  torch.save(content, file, _use_new_zipfile_serialization=zipped)
  refused(file, r"asks for (posix|nt)\.system, which .* may run code; nothing was run")
  assert not evidence.exists()
  torch.load(file, weights_only=False)  # the pickle is a live one
  assert evidence.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_reading_needs_no_pytorch(weights, file, tmp_path, monkeypatch, zipped):
  torch.save(dict(model=to_torch(weights)), file, _use_new_zipfile_serialization=zipped)
  monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
  assert equal(read_state_dict(file), weights)
  with pytest.raises(UserError, match="PyTorch is needed to write"):
    write_state_dict(tmp_path / "other.pth", weights)
  assert not (tmp_path / "other.pth").exists()


def test_compressed_archives_are_refused(weights, file, tmp_path):
  write_state_dict(file, weights)
  other = tmp_path / "other.pth"
  with (
    zipfile.ZipFile(file) as archive,
    zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as compressed,
  ):
    for name in archive.namelist():
      compressed.writestr(name, archive.read(name))
  refused(other, "zip archive is damaged")


def test_every_changed_byte_of_a_zip_is_refused(weights, file):
  torch.save(dict(model=to_torch(weights), args=argparse.Namespace(lr=1)), file)
  content = file.read_bytes()
  for position in range(len(content)):
    for flip in FLIPS:
      changed = bytearray(content)
      changed[position] ^= flip
      file.write_bytes(changed)
      refused(file, "cannot be used: .* get the file again")


def test_no_changed_byte_of_a_safetensors_header_changes_a_tensor(weights, tmp_path):
  file = tmp_path / "weights.safetensors"
  write_state_dict(file, weights)
  content = file.read_bytes()
  header = 8 + int.from_bytes(content[:8], "little")
  for position in range(header):
    for flip in FLIPS:
      changed = bytearray(content)
      changed[position] ^= flip
      file.write_bytes(changed)
      try:
        read = read_state_dict(file)
      except UserError as error:
        assert "\n" not in str(error)
      else:
        # A changed name is refused by the model.
        assert equal(dict(zip(weights, read.values(), strict=True)), weights), (position, flip)
        assert list(read) != list(weights), (position, flip)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files_are_refused(weights, tmp_path, suffix):
  path = tmp_path / f"weights{suffix}"
  write_state_dict(path, weights)
  content = path.read_bytes()
  for length in range(0, len(content), 7):
    path.write_bytes(content[:length])
    refused(path, "cannot be used: .* get the file again")


def test_an_older_file_says_how_many_numbers_a_storage_has(file):
  torch.save(dict(w=torch.ones(6)), file, _use_new_zipfile_serialization=False)
  content = bytearray(file.read_bytes())
  assert content[-32:-24] == (6).to_bytes(8, "little"), "before the numbers"
  for count in (0, 1, 2, 3, 5, 7, 12, 24):
    content[-32] = count
    file.write_bytes(content)
    with pytest.raises(UserError, match="not as large as its tensors say"):
      read_state_dict(file)


@pytest.mark.parametrize(
  "start", [b"", b"PK\x03\x04", b"\x80\x02", struct.pack("<Q", 99) + b"{", b"\x1f\x8b"]
)
def test_random_bytes_are_refused(file, start):
  for seed in range(20):
    file.write_bytes(start + np.random.default_rng(seed).bytes(500))
    refused(file, "cannot be used")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\xef\xbb\xbf\n <HTML lang=en>"])
def test_html_is_recognised(file, page):
  file.write_bytes(page)
  refused(file, "is an HTML page, not a file of weights")


def test_missing_files_and_directories_are_told(file, tmp_path):
  refused(file, "No such file")
  refused(tmp_path, "Is a directory")


@pytest.mark.parametrize(
  ("content", "match"),
  [
    ([1, 2], "holds a list, expected a dict"),
    ({}, "holds no tensors"),
    ({"model": {}}, "holds no tensors"),
    ({"state": {"a": torch.zeros(1)}, "epoch": 1}, "holds no 'model'.* found 'state', 'epoch'"),
    ({"model": {"a": 1}}, "'a' is a int, expected a tensor"),
    ({"model": {1: torch.zeros(1)}}, "1 is a Tensor, expected a tensor under a name"),
    ({"model": {"a": torch.zeros(1, dtype=torch.int32)}}, "a is torch.int32 .* expected dense"),
    ({"model": {"a": torch.zeros(2, 2).to_sparse()}}, "expected dense floats"),
  ],
)
def test_other_content_is_told(file, content, match):
  torch.save(content, file)
  refused(file, match)


def test_averaged_weights_that_are_missing_are_told(weights, file):
  write_state_dict(file, weights)
  with pytest.raises(UserError, match="holds no 'model_ema'"):
    read_state_dict(file, ema=True)


@pytest.mark.parametrize(
  "change",
  [
    lambda entry: entry.update(dtype="I32"),
    lambda entry: entry.update(dtype="F99"),
    lambda entry: entry.update(dtype=4),
    lambda entry: entry.update(shape=[4, 3, 1, -1]),
    lambda entry: entry.update(shape=[True, 12]),
    lambda entry: entry.update(shape=12),
    lambda entry: entry.update(data_offsets=[0, 48, 48]),
    lambda entry: entry.update(data_offsets=[20, 68]),
    lambda entry: entry.update(extra=1),
    lambda entry: entry.pop("shape"),
  ],
)
def test_safetensors_headers_are_held_to_the_letter(weights, tmp_path, change):
  path = tmp_path / "weights.safetensors"
  write_state_dict(path, weights)
  content = path.read_bytes()
  length = int.from_bytes(content[:8], "little")
  header = json.loads(content[8 : 8 + length])
  change(header["norm.weight"])
  changed = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
  refused(path, "cannot be used")


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("shape", [[0], [], [3, 0, 2], [1, 1]])
def test_safetensors_of_any_shape_are_read(tmp_path, dtype, shape):
  library = pytest.importorskip("safetensors.torch")
  types = dict(F64=torch.float64, F32=torch.float32, F16=torch.float16, BF16=torch.bfloat16)
  content = {"b": torch.full(shape, 1.5, dtype=types[dtype]), "a": torch.ones(2)}
  library.save_file(content, tmp_path / "weights.safetensors")
  read = read_state_dict(tmp_path / "weights.safetensors")
  assert {key: array.shape for key, array in read.items()} == {"a": (2,), "b": tuple(shape)}
  assert (read["b"] == 1.5).all()


def test_safetensors_with_a_key_twice_are_refused(weights, tmp_path):
  path = tmp_path / "weights.safetensors"
  write_state_dict(path, {"a": weights["norm.bias"], "b": weights["norm.bias"]})
  path.write_bytes(path.read_bytes().replace(b'"b":', b'"a":'))
  refused(path, "a key occurs twice")


def test_nothing_is_overwritten_or_left_half_written(weights, tmp_path):
  path = tmp_path / "weights.pth"
  path.write_text("precious")
  with pytest.raises(UserError, match="exists already"):
    write_state_dict(path, weights)
  assert path.read_text() == "precious"
  with pytest.raises(UserError, match=r"must end in \.pth or \.safetensors"):
    write_state_dict(tmp_path / "weights.bin", weights)
  with pytest.raises(UserError, match="cannot write"):
    write_state_dict(tmp_path / "nowhere" / "weights.pth", weights)
  assert list(tmp_path.iterdir()) == [path]
