"""One's own photos: what is held out, and what is refused."""

import shutil

import ml_collections
import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photo_sets import SHAPES, write_photos
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from gfnet_jax.data.sources import contents
from gfnet_jax.data.sources.holdout import hold_out
from gfnet_jax.data.sources.open import open_source
from gfnet_jax.data.sources.recognise import Recognised, recognise
from gfnet_jax.data.sources.records import BadRecordError
from gfnet_jax.errors import UserError
from gfnet_jax.inference import evaluate
from gfnet_jax.inference.classification import CLASSIFICATION
from gfnet_jax.inference.saved_model import SavedModel

pytestmark = pytest.mark.usefixtures("own_cache")


def open_split(root, split):
  data = ml_collections.ConfigDict(dict(source="photos", name=str(root)))
  return open_source(data, split)


def images(root, split):
  """The bytes of the images of a split, with the names of their classes."""
  source = open_split(root, split)
  records = [source[i] for i in range(len(source))]
  return {(source.class_names[record.label], record.image) for record in records}


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


def test_another_folder_is_evaluated_as_a_whole(photos):
  assert recognise(str(photos), usual="photos") == Recognised("folder", "")


@pytest.mark.parametrize("named", ["photos", "./photos", "others"])
def test_the_folder_of_the_training_is_evaluated_with_a_warning(
  photos, tmp_path, named, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  shutil.copytree(photos, "others")
  run_config = {"data": {"source": "photos", "name": "photos"}}
  trained = SavedModel(None, {}, run_config=run_config)
  evaluate._open(evaluate.data_section(trained, name=named), trained, CLASSIFICATION)
  said = capsys.readouterr().out
  warning = f"warning: the model was trained on images of {named}; leave out --data"
  assert (warning in said) == (named != "others")
