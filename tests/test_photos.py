"""One's own photos: what is held out, what is refused, and what is chosen."""

import json
import math
import os
import shutil
import signal
from types import SimpleNamespace

import jax
import ml_collections
import numpy as np
import PIL
import pytest
from helpers import read_lines
from hypothesis import given
from hypothesis import strategies as st
from photo_sets import SHAPES, write_photos
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

import gfnet_jax
from configs.photos import get_config
from gfnet_jax.checkpoints.model import save_model
from gfnet_jax.config_files import default_workdir
from gfnet_jax.data.on_device.mixing import Mixing
from gfnet_jax.data.sources import contents
from gfnet_jax.data.sources.holdout import hold_out
from gfnet_jax.data.sources.open import open_source
from gfnet_jax.data.sources.recognise import Recognised, recognise
from gfnet_jax.data.sources.records import BadRecordError
from gfnet_jax.errors import UserError
from gfnet_jax.models.functional import split
from gfnet_jax.sharding import check_batch_size
from gfnet_jax.training import choices, final_report
from gfnet_jax.training.choices import (
  advise_batch,
  choose_as_before,
  choose_from_data,
  choose_model,
  fitting_batch_size,
)
from gfnet_jax.training.config_rules import check_config, check_groups, flatten
from gfnet_jax.training.same_run import check_same_run


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
  """30 images, ten of each of three classes."""
  return write_photos(tmp_path / "photos", 30, size=(24, 20))


def open_split(root, split):
  data = ml_collections.ConfigDict(dict(source="photos", name=str(root)))
  return open_source(data, split)


def images(root, split):
  """The bytes of the images of a split, with the names of their classes."""
  source = open_split(root, split)
  records = [source[i] for i in range(len(source))]
  return {(source.class_names[record.label], record.image) for record in records}


# What is held out.


@given(st.data())
def test_what_holding_out_promises(data):
  classes = data.draw(st.integers(1, 4))
  pairs = st.tuples(st.integers(0, classes - 1), st.integers(0, 40))
  pairs = data.draw(st.lists(pairs, min_size=1, max_size=80))
  labels, digests = [label for label, _ in pairs], [f"{digest:02d}" for _, digest in pairs]
  held_out = hold_out(labels, digests)
  for digest in set(digests):
    sides = {bool(held_out[i]) for i, other in enumerate(digests) if other == digest}
    assert len(sides) == 1, "identical images are never on both sides"
  for label in set(labels):
    sides = [bool(held_out[i]) for i, other in enumerate(labels) if other == label]
    of_class = {digest for other, digest in pairs if other == label}
    free = {
      f"{d:02d}" for d in of_class if all(other == label for other, found in pairs if found == d)
    }
    assert not all(sides), "every class is trained on"
    assert any(sides) == (len(free) > 1)
    if free:
      trained = {digests[i] for i, found in enumerate(labels) if found == label and not held_out[i]}
      assert free & trained, "some of what belongs to one class alone is trained on"
    if len(of_class) == len(sides) and len(free) == len(sides) > 1:
      assert sum(sides) == max(1, round(len(sides) / 5))
  order = data.draw(st.permutations(range(len(pairs))))
  again = hold_out([labels[i] for i in order], [digests[i] for i in order])
  assert again.tolist() == [held_out[i] for i in order]


def test_large_groups_of_identical_images_leave_some_to_train_on():
  labels, digests = [0] * 14, ["a"] * 5 + ["b"] * 9
  assert hold_out(labels, digests).tolist() == [True] * 5 + [False] * 9


def test_what_belongs_to_one_class_alone_is_not_all_held_out():
  shared = ([0, 1, 1, 1], ["a", "a", "b", "c"])
  held_out = hold_out([0] * 99 + shared[0], ["A"] * 99 + shared[1])
  assert held_out.tolist() == [False] * 101 + [True, False]
  assert hold_out([0] * 10 + [1], ["a"] * 8 + ["b", "c", "a"]).tolist() == (
    [False] * 8 + [True, False, False]
  )


def test_a_division_covers_all_images_and_stays_when_files_are_renamed(photos, capsys):
  train, val = images(photos, "train"), images(photos, "val")
  assert (len(train), len(val), len(train | val)) == (24, 6, 30)
  assert {name for name, _ in val} == set(SHAPES)
  printed = capsys.readouterr().out
  assert "30 images in 3 classes; 6 of them are held out for validation" in printed
  assert printed.count("held out") == 1
  for i, path in enumerate(sorted(photos.glob("*/*.jpg"))):
    path.rename(path.with_name(f"z{97 * i % 89}.jpeg"))
  moved = photos.rename(photos.with_name("moved"))
  assert (images(moved, "train"), images(moved, "val")) == (train, val)


def test_files_are_read_once(photos, monkeypatch):
  val, read, seen = images(photos, "val"), contents.read_file, []
  monkeypatch.setattr(contents, "read_file", lambda path: seen.append(path.name) or read(path))
  assert images(photos, "val") == val
  assert seen == []
  Image.new("RGB", (9, 9), "red").save(photos / "cross/0001.jpg")
  images(photos, "train")
  assert seen == ["0001.jpg"]


def test_a_photo_of_a_few_pixels(photos):
  for width, height in ((1, 1), (7, 90)):
    Image.new("RGB", (width, height), "red").save(photos / f"cross/{width}.jpg")
  assert len(images(photos, "train")) + len(images(photos, "val")) == 32


def test_what_pillow_refuses_to_reduce_is_left_out(photos, monkeypatch):
  def refuse(self, mode, size):
    raise ZeroDivisionError("no such size")

  monkeypatch.setattr(JpegImageFile, "draft", refuse)
  with pytest.raises(UserError, match="holds no image that can be read"):
    open_split(photos, "val")


def test_an_error_of_reading_may_pass(photos, monkeypatch):
  path, read = photos / "cross/0001.jpg", contents.read_file

  def read_badly(found):
    if found == path:
      raise BadRecordError(f"{found} cannot be read: Input/output error")
    return read(found)

  with monkeypatch.context() as patch:
    patch.setattr(contents, "read_file", read_badly)
    assert len(images(photos, "train")) + len(images(photos, "val")) == 29
  assert len(images(photos, "train")) + len(images(photos, "val")) == 30


def test_another_pillow_decodes_anew(photos, monkeypatch):
  read, seen = contents.read_file, []
  images(photos, "val")
  monkeypatch.setattr(contents, "read_file", lambda path: seen.append(path) or read(path))
  monkeypatch.setattr(PIL, "__version__", "0.0")
  images(photos, "val")
  assert len(seen) == 30


def test_a_cache_of_something_else_is_not_believed(photos):
  val = images(photos, "val")
  arrays = {name: np.zeros(3, "S2") for name in contents.KINDS}
  for broken in (arrays | {"paths": np.zeros(2, "S2")}, {"paths": arrays["paths"]}):
    contents.store_arrays("contents", photos, broken)
    assert images(photos, "val") == val


def test_a_class_of_one_image_is_trained_on_with_a_warning(photos, capsys):
  (photos / "lonely").mkdir()
  Image.new("RGB", (9, 9), "red").save(photos / "lonely/only.png")
  assert "lonely" in {name for name, _ in images(photos, "train")}
  val = images(photos, "val")
  assert {name for name, _ in val} == set(SHAPES)
  warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
  assert warnings == [
    "warning: no two different images in lonely: trained on, but not evaluated; add images"
  ]


def test_the_same_image_in_two_classes_is_not_held_out(photos, capsys):
  held_out = sorted(image for name, image in images(photos, "val") if name == "cross")
  (photos / "circle/copy.jpg").write_bytes(held_out[0])
  assert held_out[0] not in {image for _, image in images(photos, "val")}
  warning = "warning: the same image stands in several classes (circle/copy.jpg, cross/"
  assert warning in capsys.readouterr().out


def test_a_class_of_one_image_beside_a_shared_one_is_not_held_out(photos, capsys):
  (photos / "lonely").mkdir()
  Image.new("RGB", (9, 9), "red").save(photos / "lonely/only.png")
  shutil.copy(photos / "cross/0001.jpg", photos / "lonely/shared.jpg")
  assert "lonely" not in {name for name, _ in images(photos, "val")}
  warning = "warning: no two different images in lonely, not counting those in several classes: "
  assert warning in capsys.readouterr().out


def test_what_cannot_be_read_is_left_out_and_named(photos, capsys):
  whole = (photos / "cross/0001.jpg").read_bytes()
  (photos / "cross/0001.jpg").write_bytes(whole[: len(whole) // 2])
  (photos / "circle/0000.jpg").write_text("no image")
  assert len(images(photos, "train")) + len(images(photos, "val")) == 28
  warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
  assert [line.split(" is left out: not a readable image")[0] for line in warnings] == [
    f"warning: {photos}/circle/0000.jpg",
    f"warning: {photos}/cross/0001.jpg",
  ]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_splits_that_are_there_are_taken(photos, tmp_path, name):
  root = tmp_path / "split"
  shutil.copytree(photos, root / "train")
  write_photos(root / name, 6, size=(24, 20), seed=1)
  assert (len(open_split(root, "train")), len(open_split(root, "val"))) == (30, 6)


def test_a_training_folder_alone_is_divided(photos, tmp_path):
  expected = images(photos, "val")
  photos.rename(tmp_path / "train")
  assert images(tmp_path, "val") == expected


def test_a_class_may_be_called_train(photos):
  (photos / "cross").rename(photos / "train")
  assert open_split(photos, "val").class_names == ["circle", "stripes", "train"]


def test_what_lies_beside_the_splits_is_named(photos, tmp_path, capsys):
  root = tmp_path / "split"
  for name in ("train", "val", "test", "dev", ".cache"):
    shutil.copytree(photos, root / name)
  assert len(open_split(root, "train")) == len(open_split(root, "val")) == 30
  assert capsys.readouterr().out.count(f"{root}: train and val are read; not dev, test\n") == 1


def _class_called_train(root):
  for kind in ("steam", "diesel"):
    shutil.copytree(root / "cross", root / "train" / kind)


def _other_name_of_validation(root):
  for name in SHAPES:
    for folder in ("train", "dev"):
      shutil.copytree(root / name, root / folder / name)
    shutil.rmtree(root / name)


def _nothing(root):
  shutil.rmtree(root)


def _empty(root):
  shutil.rmtree(root)
  root.mkdir()


def _file(root):
  shutil.rmtree(root)
  root.write_text("")


def _only_files(root):
  for path in list(root.glob("*/*.jpg")):
    path.rename(root / f"{path.parent.name}{path.name}")
  for name in SHAPES:
    (root / name).rmdir()


def _one_class(root):
  for name in SHAPES[1:]:
    shutil.rmtree(root / name)


def _empty_class(root):
  (root / "nothing").mkdir()


def _unreadable_class(root):
  (root / "bad").mkdir()
  (root / "bad/1.jpg").write_text("no image")


def _copies(root):
  for name in SHAPES:
    for path in (root / name).glob("*"):
      path.write_bytes((root / name / sorted((root / name).iterdir())[0].name).read_bytes())


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (_nothing, "directory ROOT not found, expected a directory with a folder of images for each"),
    (_empty, "ROOT is empty, expected a folder for each class, such as ROOT/cats and ROOT/dogs"),
    (_file, "ROOT is a file, expected a directory with a folder of images for each class"),
    (_only_files, "ROOT holds 30 files and no folders, expected a folder for each class"),
    (_one_class, "ROOT holds one class, circle, expected at least two"),
    (_empty_class, "ROOT/nothing holds no images (.jpg"),
    (_unreadable_class, "ROOT/bad holds no image that can be read"),
    (
      _class_called_train,
      "ROOT holds images in circle, cross, stripes beside train, which has folders of its own; "
      "expected train alone or beside val, valid, validation or test, each with a folder for each",
    ),
    (_other_name_of_validation, "ROOT holds images in dev beside train, which has folders of its"),
    (_copies, "ROOT has no class of two different images, expected at least two"),
  ],
)
def test_folders_that_hold_no_photos(photos, in_process, tmp_path, spoil, message):
  spoil(photos)
  code, _, errors = in_process(
    *("train.py", "--config", "configs/photos.py", f"--config.data.name={photos}"),
    *("--workdir", tmp_path / "run"),
  )
  assert (code, errors.count("\n")) == (2, 1)
  assert errors.startswith(f"error: {message.replace('ROOT', str(photos))}")
  assert not (tmp_path / "run").exists()


def test_another_split_is_refused(photos):
  with pytest.raises(UserError, match="the split is 'test', expected train or val"):
    open_split(photos, "test")


def test_the_home_directory(photos, monkeypatch):
  monkeypatch.setenv("HOME", str(photos.parent))
  assert len(open_split("~/photos", "val")) == 6


@pytest.mark.parametrize("config", ["photos", "transfer"])
def test_the_work_directory_depends_on_the_folder(config, monkeypatch, tmp_path):
  from configs import photos, transfer

  config = {"photos": photos, "transfer": transfer}[config].get_config()
  beginning = config.name.partition("-")[0]
  for name, expected in (("a/{pets}/", "{pets}"), ("../x", "x"), ("/", "root"), ("a/..", None)):
    config.data.name = name
    monkeypatch.chdir(tmp_path)
    expected = expected or tmp_path.name
    assert str(default_workdir(config)) == f"runs/{beginning}-{expected}"


def test_another_folder_is_evaluated_as_a_whole(photos):
  assert recognise(str(photos), usual="photos") == Recognised("folder", "")


# What is chosen.


@given(st.integers(1, 10_000), st.integers(1, 16), st.integers(1, 4))
def test_chosen_batches_work(count, devices, parts):
  config = get_config()
  config.optimizer.accumulate_steps = parts
  size = fitting_batch_size(count, devices * parts)
  assert size % math.lcm(2, devices * parts) == 0
  assert size <= max(64, 2 * devices * parts)
  if size > count:
    assert size == math.lcm(2, devices * parts), "the smallest that works"
    return
  choose_from_data(config, count, devices)
  check_config(config)
  mesh = SimpleNamespace(size=devices)
  check_batch_size(config.data.batch_size, parts, mesh)
  check_groups(config, mesh)
  Mixing(num_classes=2, **config.mixing)
  config.data.batch_size = config.mixing.group_size = 512
  advice = advise_batch(config, count, devices).removeprefix("choose ").partition(",")[0]
  for flag in advice.split():
    name, _, value = flag.removeprefix("--config.").partition("=")
    config.update_from_flattened_dict({name: json.loads(value)})
  check_batch_size(config.data.batch_size, parts, mesh)
  check_groups(config, mesh)
  Mixing(num_classes=2, **config.mixing)
  assert config.data.batch_size <= count


def test_other_configs_say_what_fits_a_small_folder(photos, in_process, tmp_path):
  for name in ("train", "val"):
    shutil.copytree(photos, tmp_path / "data" / name)
  code, _, errors = in_process(
    *("train.py", "--config", "configs/transfer.py:folder", "--workdir", tmp_path / "run"),
    f"--config.data.name={tmp_path / 'data'}",
  )
  assert (code, errors.count("\n")) == (2, 1)
  assert errors.startswith(
    "error: the training split holds 30 images, fewer than one batch of 512; choose "
    "--config.data.batch_size=16 --config.mixing.group_size=2, or configs/photos.py"
  )


@pytest.mark.parametrize(
  ("count", "batch_size", "epochs"), [(17, 8, 80.0), (96, 16, 70.0), (4000, 64, 20.0)]
)
def test_epochs_and_batches_by_the_number_of_images(count, batch_size, epochs, capsys):
  config = get_config()
  choose_from_data(config, count, 1)
  assert (config.data.batch_size, config.num_epochs) == (batch_size, epochs)
  assert config.mixing.group_size == batch_size
  assert (config.data.reading.workers > 0) == (count == 4000)
  printed = capsys.readouterr().out
  assert printed.startswith(f"Chosen for {count} images (--config.FIELD=VALUE changes any of these): ")
  assert f"data.batch_size={batch_size}, " in printed


def test_what_is_given_is_not_chosen(capsys):
  config = get_config()
  config.update(num_epochs=3.0)
  config.data.batch_size = 10
  choose_from_data(config, 96, 1)
  assert (config.num_epochs, config.data.batch_size, config.mixing.group_size) == (3.0, 10, 10)
  assert "num_epochs" not in capsys.readouterr().out


@given(st.integers(16, 5000), st.integers(1, 16), st.integers(1, 16))
def test_a_run_continues_with_what_it_chose(count, devices, devices_now):
  began, now = get_config(), get_config()
  choose_model(began)
  choose_from_data(began, count, devices)
  before = json.loads(json.dumps(began.to_dict()))
  now.num_epochs = 2 * began.num_epochs
  choose_as_before(now, before)
  choose_model(now)
  choose_from_data(now, count, devices_now)
  check_same_run(flatten(before), flatten(json.loads(json.dumps(now.to_dict()))), "run", "")
  assert now.optimizer.warmup_epochs == began.optimizer.warmup_epochs
  assert now.eval_every_epochs == 2 * began.eval_every_epochs, "may change, and follows today's"


@given(st.integers(16, 5000))
def test_the_number_of_devices_chooses_nothing_that_matters(count):
  chosen = []
  for devices in (1, 2, 4):
    chosen.append(get_config())
    choose_from_data(chosen[-1], count, devices)
  assert chosen[0].to_dict() == chosen[1].to_dict() == chosen[2].to_dict()


def test_an_odd_batch_is_refused_by_its_own_name_where_images_are_mixed():
  config = get_config()
  config.data.batch_size = 25
  choose_from_data(config, 100, 1)
  with pytest.raises(UserError, match="batch_size is 25, expected an even number, as images"):
    check_groups(config, SimpleNamespace(size=1))
  config.mixing.mixup_alpha = 0.0
  check_groups(config, SimpleNamespace(size=1))
  Mixing(num_classes=2, **config.mixing)


def test_only_automatic_configs_may_leave_fields_open():
  config = get_config()
  check_config(config, may_be_open=True)
  with pytest.raises(UserError, match="is None, expected "):  # in a tool that has no data
    check_config(config)
  config.automatic = False
  with pytest.raises(UserError, match="is None, expected "):
    check_config(config, may_be_open=True)


def test_the_network_is_that_of_the_weights(tmp_path):
  saved = dict(name="gfnet-h-ti", image_size=160, embed_dims=(8, 8), depths=(1, 1), patch_size=4)
  save_model(
    tmp_path / "run", gfnet_jax.create_model(**saved, num_classes=5), saved | {"num_classes": 5}
  )
  config = get_config()
  config.init_checkpoint = str(tmp_path / "run")
  choose_model(config)
  found = {name: value for name, value in config.model.items() if value is not None}
  assert found["image_size"] == 128
  assert {name: found[name] for name in ("name", "patch_size", "num_classes")} == {
    "name": "gfnet-h-ti",
    "patch_size": 4,
    "num_classes": 0,
  }
  assert (list(found["embed_dims"]), list(found["depths"])) == ([8, 8], [1, 1])


def test_a_small_network_without_weights():
  config = get_config()
  choose_model(config)
  assert (config.model.image_size, config.model.embed_dim, config.model.depth) == (64, 64, 4)


def test_a_frozen_trunk_needs_weights():
  config = get_config()
  config.freeze_trunk = True
  with pytest.raises(UserError, match="freeze_trunk is True, but nothing was trained before"):
    check_config(config, may_be_open=True)


# Whole runs.


@pytest.fixture
def _standard_promotion():
  with jax.numpy_dtype_promotion("standard"):  # optax multiplies integers and floats
    yield


TINY = (
  *("--config.model.name=gfnet-ti", "--config.model.image_size=40", "--config.model.patch_size=8"),
  *("--config.model.embed_dim=8", "--config.model.depth=1", "--config.num_epochs=2"),
)


@pytest.mark.usefixtures("_standard_promotion")
def test_a_run_ends_with_a_report_and_predicts(photos, in_process, tmp_path, monkeypatch):
  workdir = tmp_path / "run"
  train = ("train.py", "--config", "configs/photos.py", f"--config.data.name={photos}")
  code, printed, errors = in_process(*train, "--workdir", workdir, *TINY)
  assert code == 0, errors
  assert f"Classify an image with: python tools/predict.py {workdir} IMAGE" in printed
  assert "epoch    2.00   top-1" in printed
  assert "top-5" not in printed
  report = json.loads((workdir / "report/report.json").read_text())
  last = read_lines(workdir / "metrics.jsonl")[-1]
  assert report["images"] == last["eval_images"] == 6
  assert 100 * report["correct"] / 6 == pytest.approx(last["eval_top1"])
  assert [found["name"] for found in report["classes"]] == list(SHAPES)
  assert "head.kernel" in (workdir / "parameters.txt").read_text()
  code, printed, errors = in_process("tools/predict.py", workdir, photos / "cross/0001.jpg")
  assert code == 0, errors
  assert {line.split()[1] for line in printed.splitlines()[1:]} == set(SHAPES)
  code, printed, errors = in_process("eval.py", "--checkpoint", workdir)
  assert code == 0, errors
  assert "6 images" in printed
  assert "warning" not in printed
  monkeypatch.setattr(choices, "fitting_batch_size", lambda *arguments: 8)  # as on other devices
  evaluate, locks = final_report.evaluate, []

  def interrupted(*arguments, **options):
    locks.append((workdir / "lock.json").is_file())
    os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(*arguments, **options)

  monkeypatch.setattr(final_report, "evaluate", interrupted)
  code, printed, errors = in_process(*train, "--workdir", workdir, *TINY)
  assert code == 0, errors
  assert "resumed after" in printed
  assert "Stopped by a signal with everything saved; the same command continues" in printed
  assert "Report: " not in printed
  assert locks == [True], "no other run can begin meanwhile"
  write_photos(photos, 60, size=(24, 20), seed=1)
  code, printed, errors = in_process("eval.py", "--checkpoint", workdir)
  assert code == 0, errors
  assert (
    f"warning: {photos} has changed since the training, now 12 images instead of 6; images that "
    "were trained on may be among them; compare the result with no other\n"
  ) in printed


@pytest.mark.slow
@pytest.mark.parametrize("count", [20, 120, 5000])
def test_two_commands_as_typed(count, script, tmp_path):
  photos = write_photos(tmp_path / "photos", count)
  limits = ("--config.num_epochs=2",) if count == 5000 else ()
  train = ("train.py", "--config", "configs/photos.py", f"--config.data.name={photos}", *limits)
  for resumed in (False, True):
    result = script(*train, "--workdir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert ("resumed after" in result.stdout) == resumed
  last = read_lines(tmp_path / "run/metrics.jsonl")[-1]
  if count == 120:
    assert last["eval_top1"] > 80
  result = script("tools/predict.py", tmp_path / "run", photos / "circle")
  assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_frozen_trunk_from_an_official_file(photos, script, tmp_path):
  ours, official = tmp_path / "ours", tmp_path / "weights.safetensors"
  save_model(ours, gfnet_jax.create_model("gfnet-ti"), dict(name="gfnet-ti"))
  result = script("convert_torch_weights.py", "--to-torch", ours, official)
  assert result.returncode == 0, result.stderr
  result = script(
    *("train.py", "--config", "configs/photos.py", f"--config.data.name={photos}"),
    *("--workdir", tmp_path / "run", "--config.num_epochs=2", "--config.freeze_trunk=True"),
    f"--config.init_checkpoint={official}",
  )
  assert result.returncode == 0, result.stderr
  assert "resized from 224x224 to 128x128 pixels, with a new head: 3 classes" in result.stdout
  saved, before = gfnet_jax.load_model(tmp_path / "run"), gfnet_jax.load_model(ours)
  assert (saved.class_names, saved.config["image_size"]) == (list(SHAPES), 128)
  for name in ("patch_embed.proj.kernel", "blocks.11.mlp.fc2.kernel", "norm.scale"):
    found, expected = (split(model.model)[1][name] for model in (saved, before))
    np.testing.assert_array_equal(found, expected, err_msg=name)
