"""Image folders: order, labels, the cached listing."""

import os
import pickle

import pytest
from ml_collections import ConfigDict

from gfnet_jax.data.sources import folder
from gfnet_jax.data.sources.folder import FolderSource
from gfnet_jax.data.sources.listing import list_images
from gfnet_jax.data.sources.open import check_same_classes, open_source
from gfnet_jax.data.sources.records import BadRecordError
from gfnet_jax.errors import UserError

FILES = [  # in the order of torchvision's ImageFolder, which sorts folders, then files
  "n01/a.JPEG",
  "n01/b.png",
  "n01/deep/c.jpg",
  "n02/\udcff odd name.webp",  # not UTF-8
  "n02/Z.jpeg",
  "n10/x.TIFF",
]
LABELS = [0, 0, 0, 1, 1, 2]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
  for file in [*FILES, "n01/notes.txt", "n10/.DS_Store"]:
    path = tmp_path / "images" / "train" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.fsencode(file))
  return tmp_path / "images"


def contents(source):
  return sorted((record.image, record.label) for record in map(source.__getitem__, range(6)))


def test_images_and_labels(root):
  source = FolderSource(str(root), "train")
  assert len(source) == 6
  assert source.class_names == ["n01", "n02", "n10"]
  expected = [(os.fsencode(file), label) for file, label in zip(FILES, LABELS, strict=True)]
  assert contents(source) == sorted(expected)
  assert source[0].name == str(root / "train/n01/a.JPEG")
  assert contents(pickle.loads(pickle.dumps(source))) == sorted(expected)


def test_the_order_is_torchvisions(root):
  source = FolderSource(str(root), "train")
  names = [os.fsdecode(source[i].image) for i in range(6)]
  assert names[:3] == FILES[:3]
  assert names[3:5] == sorted(FILES[3:5])


def test_a_single_level_is_a_split_without_a_name(root):
  assert contents(FolderSource(str(root / "train"), "")) == contents(
    FolderSource(str(root), "train")
  )


def test_the_listing_is_made_once_until_a_folder_changes(root, monkeypatch):
  made = []
  original = list_images
  monkeypatch.setattr(folder, "list_images", lambda path: made.append(path) or original(path))
  for _ in range(2):
    FolderSource(str(root), "train")
  assert len(made) == 1
  (root / "train/n01/deep/d.jpg").write_bytes(b"new")
  os.utime(root / "train/n01/deep", ns=(1, 1))  # in case the clock is coarse
  assert len(FolderSource(str(root), "train")) == 7
  (root / "train/n01/a.JPEG").unlink()
  os.utime(root / "train/n01", ns=(1, 1))
  assert len(FolderSource(str(root), "train")) == 6
  assert len(made) == 3


def test_a_read_only_cache_costs_a_warning_only(root, tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  with pytest.warns(UserWarning, match="cannot be written"):
    assert len(FolderSource(str(root), "train")) == 6


def test_a_file_that_is_gone_is_a_bad_record(root):
  source = FolderSource(str(root), "train")
  (root / "train/n01/a.JPEG").unlink()
  with pytest.raises(BadRecordError, match=r"a\.JPEG cannot be read"):
    source[0]


def test_mistakes_are_named(root, tmp_path):
  with pytest.raises(UserError, match=r"val not found; .* holds train; set the split"):
    FolderSource(str(root), "val")
  with pytest.raises(UserError, match=r"not found; set data\.name"):
    FolderSource(str(tmp_path / "absent"), "train")
  with pytest.raises(UserError, match="holds no folders, expected one per class"):
    FolderSource(str(root / "train"), "n10")
  (root / "train/n05").mkdir()
  with pytest.raises(UserError, match="n05 holds no images"):
    FolderSource(str(root), "train")


def test_classes_that_differ_between_the_splits_are_refused(tmp_path):
  """A class more in one of them would shift all labels after it."""
  for path in ("train/cat", "train/dog", "train/fish", "val/bird", "val/cat", "val/dog"):
    (tmp_path / path).mkdir(parents=True)
    (tmp_path / path / "0.png").write_bytes(b"")
  train, val = (FolderSource(str(tmp_path), split).class_names for split in ("train", "val"))
  check_same_classes(train, train, "train")
  with pytest.raises(UserError, match="'bird' is a class of only one of them"):
    check_same_classes(val, train, "val")


def test_no_name_is_one_line():
  with pytest.raises(UserError, match=r"data.name is empty, .* --config.data.name=DIR"):
    open_source(ConfigDict(dict(source="folder", name="")), "train")
