"""Checkpoints are whole, verified, pruned, and read without the training state."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import own_mixer
import pytest
from helpers import random_model

import gfnet_jax
from gfnet_jax.checkpoints import store
from gfnet_jax.checkpoints.checksums import DamagedError, write_checksums
from gfnet_jax.checkpoints.finding import best_step, find_checkpoint, list_steps
from gfnet_jax.checkpoints.model import model_metadata, save_model
from gfnet_jax.checkpoints.reading import on_one_device, restore, verify
from gfnet_jax.checkpoints.store import Checkpoints
from gfnet_jax.errors import UserError
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.models.functional import split
from gfnet_jax.models.mixers import MIXERS
from gfnet_jax.training.resume import trained_classes

CONFIG = dict(name="gfnet-ti", image_size=[32, 64], num_classes=3, depth=2, embed_dim=8)


@pytest.fixture(scope="module")
def model():
  return random_model(lambda: gfnet_jax.create_model(**CONFIG))


@pytest.fixture
def saved(tmp_path, model):
  save_model(tmp_path / "model", model, CONFIG, ["cat", "dog", "eel"])
  return tmp_path / "model"


def test_a_saved_model_comes_back_bit_for_bit(saved, model):
  loaded = load_model(saved)
  assert (loaded.config, loaded.class_names, loaded.step) == (CONFIG, ["cat", "dog", "eel"], 0)
  before, after = split(model)[1], split(loaded.model)[1]
  assert before.keys() == after.keys()
  for name in before:
    np.testing.assert_array_equal(before[name], after[name])
  assert list_steps(saved / "checkpoints") == [0]
  assert not list((saved / "checkpoints").glob(".*"))


def test_the_checkpoint_itself_may_be_named(saved):
  assert load_model(saved / "checkpoints" / "00000000").step == 0
  assert load_model(saved / "checkpoints", "0").step == 0


def test_relative_paths(tmp_path, monkeypatch, model):
  monkeypatch.chdir(tmp_path)
  save_model("here", model, CONFIG)
  assert load_model("here").config == CONFIG


def test_an_existing_checkpoint_is_not_overwritten(saved, model):
  with pytest.raises(UserError, match="holds checkpoints already"):
    save_model(saved, model, CONFIG)


def test_every_changed_byte_is_noticed(saved):
  checkpoint = saved / "checkpoints" / "00000000"
  files = [path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size]
  assert len(files) > 5
  rng = np.random.default_rng(0)
  for path in files:
    content = path.read_bytes()
    for damaged in (_flip(content, rng), content[: len(content) // 2], content + b"\n"):
      path.write_bytes(damaged)
      with pytest.raises(UserError, match="is damaged"):
        load_model(saved)
    path.unlink()
    with pytest.raises(UserError, match="is damaged"):
      load_model(saved)
    path.write_bytes(content)
  load_model(saved)


def _flip(content: bytes, rng) -> bytes:
  damaged = bytearray(content)
  damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
  return bytes(damaged)


def test_a_file_that_does_not_belong_is_noticed(saved):
  (saved / "checkpoints" / "00000000" / "params" / "more").touch()
  with pytest.raises(UserError, match="params/more does not belong to it"):
    load_model(saved)


def test_symbolic_links_are_not_followed(saved, tmp_path):
  metadata = saved / "checkpoints" / "00000000" / "metadata.json"
  outside = tmp_path / "outside.json"
  metadata.rename(outside)
  metadata.symlink_to(outside)
  with pytest.raises(UserError, match=r"metadata.json was altered"):
    load_model(saved)


@pytest.fixture
def checkpoints(tmp_path):
  """Five steps of a run that was best at the second."""
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=2)
  increment = jax.jit(lambda x: x + 1, donate_argnums=0)
  value = jnp.zeros(1000)
  for step, top1 in zip((10, 20, 30, 40, 50), (50, 70, 60, 65, 65), strict=True):
    value = increment(value)
    checkpoints.save(step, {"params": {"x": value}}, {"metrics": {"top1": top1}})
    value = increment(value)  # the saved buffer is donated while it is written
  checkpoints.close()
  return checkpoints.directory


def test_the_last_and_the_best_are_kept(checkpoints):
  assert list_steps(checkpoints) == [20, 40, 50]
  assert best_step(checkpoints, "top1") == 20
  assert find_checkpoint(checkpoints, "best") == (checkpoints, 20)
  assert find_checkpoint(checkpoints.parent, "last") == (checkpoints, 50)
  with pytest.raises(UserError, match=r"no checkpoint '7' in .* expected last, best or 20, 40, 50"):
    find_checkpoint(checkpoints, "7")


@pytest.fixture
def described(tmp_path):
  """Only what finding needs: metadata of a run with averaged weights."""
  directory = tmp_path / "run" / "checkpoints"
  metrics = {7: (50, 10), 45: (70, 20), 123456789: (60, 30)}
  for step, (top1, ema_top1) in metrics.items():
    path = directory / f"{step:08d}"
    path.mkdir(parents=True)
    text = json.dumps({"step": step, "metrics": {"top1": top1, "ema_top1": ema_top1}})
    (path / "metadata.json").write_text(text)
    write_checksums(path)
  return directory


@pytest.mark.parametrize(
  ("which", "step"),
  [
    *[("7", 7), ("00000007", 7), (7, 7), (np.int64(7), 7), ("000000007", 7)],
    *[("45", 45), ("00000045", 45), ("123456789", 123456789), ("0123456789", 123456789)],
    *[("last", 123456789), ("best", 45)],
  ],
)
def test_a_checkpoint_is_named_by_its_step_or_its_directory(described, which, step):
  for directory in (described, described.parent):
    assert find_checkpoint(directory, which) == (described, step)
  if which != "best":
    assert find_checkpoint(described / f"{step:08d}", which) == (described, step)


def test_the_best_averaged_weights_are_those_with_the_best_averages(described):
  assert find_checkpoint(described, "best", best_metric="ema_top1") == (described, 123456789)


def test_load_model_takes_the_best_of_what_it_reads(tmp_path, model):
  """The raw weights were best at the first step, their averages at the second."""
  _, params = split(model)
  description = model_metadata(CONFIG, None)
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=3)
  for step, top1, ema_top1 in ((10, 50, 1), (20, 40, 3), (30, 30, 2)):
    metadata = {**description, "metrics": {"top1": top1, "ema_top1": ema_top1}}
    checkpoints.save(step, {"params": params, "ema": params}, metadata)
  checkpoints.close()
  assert load_model(tmp_path, "best").step == 10
  assert load_model(tmp_path, "best", ema=True).step == 20


@pytest.mark.parametrize(
  "which",
  ["8", "-7", "+7", "7.0", " 7", "\u0667", "\uff19", "step 7", "0x7", "", "9" * 5000, "LAST"],
)
def test_what_names_no_checkpoint_is_refused(described, which):
  with pytest.raises(UserError, match="expected last, best or 7, 45, 123456789"):
    find_checkpoint(described, which)


@pytest.mark.parametrize("which", ["best", "45", "00000045", "other"])
def test_one_checkpoint_is_not_another_one(described, which):
  with pytest.raises(UserError, match=f"00000007 is one checkpoint, without '{which}'; name "):
    find_checkpoint(described / "00000007", which)


def test_the_best_needs_an_evaluation(described):
  with pytest.raises(UserError, match="has the metric eval_f1; take last"):
    find_checkpoint(described, "best", best_metric="eval_f1")


def test_what_was_saved_is_the_state_of_that_step(checkpoints):
  shape = {"x": jax.ShapeDtypeStruct((1000,), jnp.float32)}
  for step, value in ((20, 3), (40, 7), (50, 9)):
    restored = restore(checkpoints, step, {"params": on_one_device(shape)})
    assert np.all(np.asarray(restored["params"]["x"]) == value)


def test_leftovers_of_a_killed_run_are_not_checkpoints(checkpoints):
  (checkpoints / ".pending-00000060").mkdir()
  assert list_steps(checkpoints) == [20, 40, 50]
  Checkpoints(checkpoints).close()
  assert not (checkpoints / ".pending-00000060").exists()


def test_a_step_can_be_saved_again(checkpoints):
  again = Checkpoints(checkpoints)
  again.save(50, {"params": {"x": jnp.zeros(3)}}, {"metrics": {}})
  again.close()
  shape = {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}
  assert np.all(
    np.asarray(restore(checkpoints, 50, {"params": on_one_device(shape)})["params"]["x"]) == 0
  )


def test_what_cannot_be_removed_is_no_failed_save(tmp_path, capsys, monkeypatch):
  def unreadable(directory, step):
    raise OSError(5, "Input/output error", str(directory))

  checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=1)
  monkeypatch.setattr(store, "verify", unreadable)
  for step in (1, 2, 3):
    checkpoints.save(step, {"params": {"x": jnp.zeros(3)}}, {"metrics": {}})
  checkpoints.close()
  assert list_steps(tmp_path / "checkpoints") == [1, 2, 3]
  assert capsys.readouterr().out.count("warning: old checkpoints could not be removed") == 2


def test_what_belongs_to_another_run_is_not_completed(tmp_path, capsys):
  def confirm():
    raise UserError("taken over")

  checkpoints = Checkpoints(tmp_path / "checkpoints", confirm=confirm)
  checkpoints.save(1, {"params": {"x": jnp.zeros(3)}}, {"metrics": {}})
  with pytest.raises(UserError, match=r"step 1 could not be written .*taken over"):
    checkpoints.close()
  assert list_steps(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("name", ["metadata.json", "sha256.json"])
def test_classes_are_those_of_the_newest_whole_description(described, name):
  """A damaged one is set aside later, with a warning."""
  for step, names in ((7, ["a"]), (45, ["b"])):
    path = described / f"{step:08d}"
    description = {"step": step, **model_metadata(CONFIG, names)}
    (path / "metadata.json").write_text(json.dumps(description))
    write_checksums(path)
  assert trained_classes(described) == ["b"]
  path = described / "00000045" / name
  path.write_bytes(path.read_bytes().replace(b"1", b"2"))
  assert trained_classes(described) == ["a"]


def test_a_write_that_fails_is_reported_and_tried_again(tmp_path, capsys):
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  checkpoints.save(1, {"params": {"x": jnp.zeros(3)}}, {"metrics": {"not": object()}})
  checkpoints.wait()
  assert list_steps(tmp_path / "checkpoints") == []
  checkpoints.save(2, {"params": {"x": jnp.zeros(3)}}, {"metrics": {}})
  checkpoints.close()
  assert "the checkpoint of step 1 could not be written" in capsys.readouterr().out
  assert list_steps(tmp_path / "checkpoints") == [2]


def test_a_last_write_that_fails_is_an_error(tmp_path):
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  checkpoints.save(1, {"params": {"x": jnp.zeros(3)}}, {"metrics": {"not": object()}})
  with pytest.raises(UserError, match="step 1 could not be written"):
    checkpoints.close()


def test_some_are_kept_for_ever(tmp_path):
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=1)
  for step in range(1, 7):
    checkpoints.save(step, {"params": {"x": jnp.zeros(3)}}, {"keep": step % 2 == 0})
  checkpoints.close()
  assert list_steps(tmp_path / "checkpoints") == [2, 4, 6]


def test_metadata_is_readable_text(checkpoints):
  metadata = json.loads((checkpoints / "00000050" / "metadata.json").read_text())
  assert metadata["step"] == 50


def test_a_directory_without_a_checkpoint(tmp_path):
  with pytest.raises(UserError, match="no checkpoint in"):
    load_model(tmp_path)
  with pytest.raises(UserError, match="no checkpoint in"):
    load_model(tmp_path / "nowhere")


def test_sums_that_are_no_json(checkpoints):
  (checkpoints / "00000050" / "sha256.json").write_text("[1")
  with pytest.raises(DamagedError, match=r"sha256.json cannot be read"):
    verify(checkpoints, 50)


def test_a_checkpoint_that_was_being_replaced_is_found_again(saved, model):
  """Killed between taking one away and putting the other in its place."""
  directory = saved / "checkpoints"
  (directory / "00000000").rename(directory / ".replaced-00000000")
  Checkpoints(directory).close()
  assert load_model(saved).step == 0
  (directory / ".replaced-00000000").mkdir()  # killed after that
  Checkpoints(directory).close()
  assert [path.name for path in directory.iterdir()] == ["00000000"]


def test_a_config_of_another_model_is_not_saved_with_it(tmp_path, model):
  with pytest.raises(UserError, match="describes another model than the one to save: 2 mis-shaped"):
    save_model(tmp_path / "model", model, CONFIG | {"num_classes": 4})
  assert not (tmp_path / "model").exists()


def test_a_model_whose_code_has_changed_since_is_named(saved, monkeypatch):
  monkeypatch.setitem(MIXERS, "global-filter", own_mixer.Gate)
  message = (
    r"00000000 was saved by another version of its network: 2 missing \(blocks.0.filter.gain"
  )
  with pytest.raises(UserError, match=message):
    load_model(saved)
