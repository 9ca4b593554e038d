"""Nothing damaged is removed, passed over or believed: bits, foreign files, wrong content."""

import json
import os
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_model

import gfnet_jax
from gfnet_jax.checkpoints.checksums import DamagedError, write_checksums
from gfnet_jax.checkpoints.finding import best_step, find_checkpoint, list_steps
from gfnet_jax.checkpoints.metadata import parse_metadata, serialize_metadata
from gfnet_jax.checkpoints.model import read_model, save_model
from gfnet_jax.checkpoints.reading import read_metadata, saved_shapes, verify
from gfnet_jax.checkpoints.store import Checkpoints
from gfnet_jax.errors import UserError
from gfnet_jax.models.functional import split

CONFIG = dict(name="gfnet-ti", image_size=16, num_classes=3, depth=1, embed_dim=4)


def make_checkpoint(directory: Path, step: int, **metadata) -> Path:
  """A checkpoint of one small file, as the store would have committed it."""
  path = directory / f"{step:08d}"
  (path / "params").mkdir(parents=True)
  (path / "params" / "array").write_bytes(bytes(100))
  (path / "metadata.json").write_text(json.dumps({"step": step} | metadata))
  write_checksums(path)
  return path


@pytest.fixture
def three(tmp_path):
  """Steps 1, 2 and 3 of a run that was best at the first."""
  for step, top1 in ((1, 90.0), (2, 50.0), (3, 40.0)):
    make_checkpoint(tmp_path, step, metrics={"top1": top1})
  return tmp_path


def flip(path: Path, bit: int = 300) -> None:
  content = bytearray(path.read_bytes())
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)


def replace_by_pipe(path: Path) -> None:
  path.unlink()
  os.mkfifo(path)


def replace_by_link(path: Path) -> None:
  path.rename(path.parent.parent / "elsewhere")
  path.symlink_to(path.parent.parent / "elsewhere")


def replace_by_directory(path: Path) -> None:
  path.unlink()
  path.mkdir()


DAMAGES = {
  "a bit of the sums": lambda path: flip(path / "sha256.json"),
  "a bit of the metadata": lambda path: flip(path / "metadata.json", 80),
  "a bit of an array": lambda path: flip(path / "params" / "array"),
  "metadata cut off": lambda path: (path / "metadata.json").write_bytes(b""),
  "metadata gone": lambda path: (path / "metadata.json").unlink(),
  "sums gone": lambda path: (path / "sha256.json").unlink(),
  "a pipe for the sums": lambda path: replace_by_pipe(path / "sha256.json"),
  "a pipe for an array": lambda path: replace_by_pipe(path / "params" / "array"),
  "a link for the metadata": lambda path: replace_by_link(path / "metadata.json"),
  "a directory for the metadata": lambda path: replace_by_directory(path / "metadata.json"),
  "all bytes of the metadata": lambda path: (path / "metadata.json").write_bytes(bytes(100)),
  "a huge file of sums": lambda path: os.truncate(path / "sha256.json", 2**40),
}


def save_once_more(directory: Path) -> list[int]:
  """Saves step 4, the worst, and returns what is left."""
  checkpoints = Checkpoints(directory, keep_last=2)
  checkpoints.save(4, {"params": {"x": jnp.zeros(3)}}, {"metrics": {"top1": 10.0}})
  checkpoints.close()
  return list_steps(directory)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_best_checkpoint_is_set_aside_and_the_next_best_kept(three, capsys, damage):
  DAMAGES[damage](three / "00000001")
  assert save_once_more(three) == [2, 3, 4]
  [aside] = three.glob("damaged-00000001-*")
  assert (aside / "params" / "array").exists() or damage == "a pipe for an array"
  warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
  assert len(warnings) == 1
  assert "00000001 is damaged: " in warnings[0]
  assert "set aside" in warnings[0]


@pytest.mark.parametrize("damage", ["a bit of an array", "metadata gone", "sums gone"])
def test_what_would_be_removed_is_set_aside_if_it_is_damaged(three, capsys, damage):
  DAMAGES[damage](three / "00000002")
  assert save_once_more(three) == [1, 3, 4]
  assert len(list(three.glob("damaged-00000002-*"))) == 1
  assert capsys.readouterr().out.count("00000002 is damaged") == 1


def test_what_is_whole_is_kept_and_removed_as_before(three, capsys):
  assert save_once_more(three) == [1, 3, 4]
  assert not list(three.glob("damaged-*"))
  assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
  "damage", ["a bit of the metadata", "metadata gone", "a pipe for the sums"]
)
def test_the_best_is_not_told_where_a_damaged_one_may_be_it(three, damage):
  DAMAGES[damage](three / "00000002")
  with pytest.raises(UserError, match=r"00000002 is damaged: .*; without it the best cannot be"):
    find_checkpoint(three, "best")
  assert find_checkpoint(three, "last") == (three, 3)
  assert sorted(path.name for path in three.iterdir()) == ["00000001", "00000002", "00000003"]


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path):
  for step, value in ((1, 3.0), (2, float("inf")), (3, float("nan"))):
    make_checkpoint(tmp_path, step, metrics={"top1": value})
  assert best_step(tmp_path, "top1") == 1


def test_a_file_without_permission_is_not_taken_for_a_damaged_one(three, monkeypatch):
  def refuse(*arguments):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr("hashlib.file_digest", refuse)
  with pytest.raises(UserError, match=r"cannot read .* \(Permission denied\); make it") as caught:
    verify(three, 3)
  assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize(
  "name",
  ["000000180", "\u0660" * 8, "\uff11" * 8, "00000180.old", "0x000180", "+0000180", "9" * 30],
)
def test_other_names_are_no_checkpoints(three, name):
  shutil.copytree(three / "00000003", three / name)
  assert list_steps(three) == [1, 2, 3]
  with pytest.raises(UserError, match="no checkpoint in"):
    find_checkpoint(three / name)


def test_a_checkpoint_under_another_step_is_noticed(three):
  (three / "00000003").rename(three / "00000030")
  with pytest.raises(DamagedError, match=r"metadata.json is of step 3, expected 30"):
    verify(three, 30)


OF_A_MODEL = {"step": 0, "format": 1, "model": CONFIG, "class_names": ["a", "b", "c"]}
OF_A_RUN = OF_A_MODEL | {
  **dict(config={}, metrics={}, evaluated=False, next_batch=0, skipped_batches=[], keep=False)
}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"step": True}, "step is True, expected an integer from 0 to 2147483647"),
    ({"step": 0.0}, "step is 0.0"),
    ({"step": 2**31}, "step is 2147483648"),
    ({"format": 2}, "format is 2, expected 1"),
    ({"model": []}, r"model is \[\], expected a section"),
    ({"class_names": "abc"}, "class_names is 'abc', expected a list of names, or null"),
    ({"class_names": ["a", 1, "c"]}, "class_names is"),
    ({"metrics": {"top1": "90"}}, "metrics is {'top1': '90'}, expected numbers by name"),
    ({"metrics": {"top1": 10**400}}, "metrics is"),
    ({"metrics": None}, "metrics is None"),
    ({"skipped_batches": [3, 2]}, r"skipped_batches is \[3, 2\], expected ascending indices"),
    ({"skipped_batches": {"0": 1}}, "skipped_batches is"),
    ({"next_batch": -1}, "next_batch is -1"),
    ({"evaluated": 1}, "evaluated is 1, expected true or false"),
    ({"config": [1]}, r"config is \[1\], expected a section"),
    ({"config": {"data": "x"}}, "config.data is 'x', expected a section"),
    ({"config": {"data": {"source": 3}}}, "config.data.source is 3, expected text"),
    (
      {"config": {"data": {"reading": {"workers": 1e9}}}},
      "config.data.reading.workers is 1000000000.0",
    ),
    ({"config": {"precision": "\0"}}, r"config.precision is '\\x00'"),
    ({"keep": "\x1b[2J" * 99}, r"keep is '\\x1b\[2J"),
  ],
)
def test_the_schema_names_what_is_wrong(changes, message):
  serialize_metadata(OF_A_RUN)
  with pytest.raises(ValueError, match=rf"^{message}") as caught:
    parse_metadata(json.dumps(OF_A_RUN | changes).encode())
  assert len(str(caught.value)) < 300
  assert str(caught.value).isprintable()


@pytest.mark.parametrize("missing", ["step", "format", "class_names", "metrics", "skipped_batches"])
def test_the_schema_names_what_is_missing(missing):
  metadata = {name: value for name, value in OF_A_RUN.items() if name != missing}
  with pytest.raises(ValueError, match=f"^{missing} is missing"):
    parse_metadata(json.dumps(metadata).encode())


@pytest.mark.parametrize(
  "text",
  [
    *(b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"step": 1' + b"0" * 9999 + b"}"),
    *(b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900),
    json.dumps({"step": 0, "config": json.loads('{"a":' * 50 + "1" + "}" * 50)}).encode(),
  ],
)
def test_texts_that_are_no_metadata(text):
  with pytest.raises(ValueError):
    parse_metadata(text)


@pytest.fixture(scope="module")
def model():
  return random_model(lambda: gfnet_jax.create_model(**CONFIG))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model):
  directory = tmp_path_factory.mktemp("saved") / "model"
  save_model(directory, model, CONFIG, ["a", "b", "c"])
  return directory


@pytest.fixture
def describe(saved, tmp_path):
  """describe(**changes) is a copy of the model with other metadata and valid sums."""

  def describe(**changes) -> Path:
    shutil.copytree(saved, tmp_path / "model")
    path = tmp_path / "model" / "checkpoints" / "00000000"
    metadata = json.loads((path / "metadata.json").read_text()) | changes
    metadata = {name: value for name, value in metadata.items() if value != "gone"}
    (path / "metadata.json").write_text(json.dumps(metadata))
    write_checksums(path)
    return tmp_path / "model"

  return describe


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model": "gone", "format": "gone"}, "00000000 holds no model; name a checkpoint"),
    ({"model": {}}, "does not describe its model: expected the arguments of create_model"),
    ({"model": CONFIG | {"dtype": "float64"}}, "does not describe its model: expected"),
    ({"model": CONFIG | {"name": ["gfnet-ti"]}}, r"name is \['gfnet-ti'\], expected a name"),
    ({"model": CONFIG | {"name": "\x1b]0;x"}}, "unknown model '\\\\x1b"),
    ({"model": CONFIG | {"depth": 10**9}}, "depth is 1000000000, expected at least 1 and"),
    ({"model": CONFIG | {"depth": 999}}, "999 blocks are more than the"),
    ({"model": CONFIG | {"scan": True, "depth": 999}}, "999 blocks are more than the"),
    ({"model": CONFIG | {"embed_dim": 10**30}}, "embed_dim is 1"),
    ({"model": CONFIG | {"embed_dim": 4.0}}, "embed_dim is 4.0, expected"),
    ({"model": CONFIG | {"embed_dim": 8}}, "saved by another version of its network: "),
    ({"model": CONFIG | {"image_size": [10**9, 16]}}, "image_size is"),
    ({"model": CONFIG | {"image_size": None}}, "image_size is None"),
    ({"model": CONFIG | {"num_classes": 4}}, "3 class names for a model of 4 classes"),
    ({"model": CONFIG | {"mixer": {}}}, "mixer is {}, expected a name"),
    ({"model": CONFIG | {"drop_path_rate": float("nan")}}, "drop_path_rate is nan"),
    ({"class_names": ["a", "b"]}, "2 class names for a model of 3 classes"),
    ({"config": {"precision": "fp8"}} | {n: OF_A_RUN[n] for n in list(OF_A_RUN)[5:]}, "is 'fp8'"),
  ],
)
def test_a_description_of_another_model_is_one_line(describe, changes, message):
  with pytest.raises(UserError, match=message) as caught:
    read_model(describe(**changes))
  assert "\n" not in str(caught.value)


def test_class_names_are_counted_when_a_model_is_saved(tmp_path, model):
  with pytest.raises(UserError, match="there are 2 class names for a model of 3 classes"):
    save_model(tmp_path / "model", model, CONFIG, ["a", "b"])
  assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
  "change",
  [
    lambda params: (params / "_METADATA").write_bytes(b"[" * 100_000),
    lambda params: (params / "_METADATA").unlink(),
    lambda params: shutil.rmtree(params / "ocdbt.process_0"),
    lambda params: (params / "manifest.ocdbt").write_bytes(bytes(64)),
  ],
)
def test_arrays_with_valid_sums_that_cannot_be_read(describe, change):
  directory = describe()
  path = directory / "checkpoints" / "00000000"
  change(path / "params")
  write_checksums(path)
  with pytest.raises(UserError, match=r"00000000 is damaged: .*; there is no other") as caught:
    read_model(directory)
  assert "\n" not in str(caught.value)


def test_arrays_far_larger_than_their_files_are_not_built(describe, monkeypatch):
  """As if their files declared 4 TB."""
  monkeypatch.setattr("gfnet_jax.checkpoints.reading.ALLOWED_BYTES", 0)
  monkeypatch.setattr("gfnet_jax.checkpoints.reading.MOST_BYTES_PER_BYTE", 0.01)
  with pytest.raises(UserError, match=r"params declares \d+ bytes of arrays, and holds \d+"):
    read_model(describe())


def mutate(path: Path, rng: random.Random) -> None:
  """Changes a file, or puts something else in its place."""
  content = path.read_bytes()
  kind = rng.randrange(8)
  if kind < 3 and content:
    flip(path, rng.randrange(8 * len(content)))
  elif kind == 3:
    path.write_bytes(content[: rng.randrange(len(content) + 1)])
  elif kind == 4:
    start = rng.randrange(len(content) + 1)
    path.write_bytes(content[:start] + rng.randbytes(rng.randrange(1, 20)) + content[start:])
  elif kind == 5:
    (replace_by_link, replace_by_pipe, replace_by_directory)[rng.randrange(3)](path)
  elif kind == 6:
    path.rename(path.with_name(rng.choice(["x", "\x1b[31m", "metadata.json", "ünïcode"])))
  else:
    path.unlink()


def mutate_json(value, rng: random.Random):
  """The value with another one somewhere in it."""
  if isinstance(value, dict | list) and value and rng.random() < 0.8:
    copy = value.copy()
    key = rng.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
    copy[key] = mutate_json(copy[key], rng)
    return copy
  return rng.choice(
    [None, True, -1, 0, 3, 10**30, 1.5, float("nan"), "", "gfnet-s", "\x1b", [], [1], {}, {"a": 1}]
  )


@pytest.mark.slow
@pytest.mark.parametrize("valid_sums", [False, True])
def test_mutated_checkpoints_are_refused_or_equal(saved, model, tmp_path, valid_sums):
  """Files of every kind, and values of the metadata; with sums as they were, or made anew."""
  rng, accepted = random.Random(valid_sums), 0
  _, expected = split(model)
  for _ in range(60):
    directory = tmp_path / "model"
    shutil.copytree(saved, directory)
    path = directory / "checkpoints" / "00000000"
    files = sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in files if not (valid_sums and file.name == "sha256.json")]
    if valid_sums and rng.random() < 0.6:
      metadata = json.loads((path / "metadata.json").read_text())
      (path / "metadata.json").write_text(json.dumps(mutate_json(metadata, rng)))
    else:
      mutate(rng.choice(files), rng)
    if valid_sums and not any(file.is_symlink() or file.is_fifo() for file in path.rglob("*")):
      write_checksums(path)
    try:
      loaded, _ = read_model(directory)
    except UserError as error:
      assert "\n" not in str(error)
    else:
      accepted += 1
      for name, value in split(loaded)[1].items():
        if valid_sums:  # what is written with its sums is what is there
          assert value.shape == expected[name].shape
        else:
          np.testing.assert_array_equal(value, expected[name], err_msg=name)
    shutil.rmtree(directory)
  assert accepted < 60


def test_shapes_are_read_without_the_arrays(saved):
  shapes = saved_shapes(saved / "checkpoints", 0, "params")
  assert shapes["head.bias"] == jax.ShapeDtypeStruct((3,), jnp.float32)
  assert read_metadata(saved / "checkpoints", 0)["model"] == CONFIG
