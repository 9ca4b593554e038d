"""What tells the images of one data set from those of another, and what does not."""

import shutil
from pathlib import Path

import pytest
from image_sets import example, write_tfds
from ml_collections import ConfigDict

from gfnet_jax.data.sources.fingerprint import describe_classes, describe_images, fingerprint
from gfnet_jax.data.sources.folder import FolderSource
from gfnet_jax.data.sources.open import open_source
from gfnet_jax.data.sources.tfrecord import FRAME, masked_crc


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path) -> Path:
  for name in ("ant/1.png", "ant/2.png", "bee/1.png", "bee/deep/2.png"):
    path = tmp_path / "images/train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not read")
  return tmp_path / "images"


def taken(root: Path, split: str = "train") -> dict:
  return fingerprint(FolderSource(str(root), split))


def test_a_folder_at_another_path_is_the_same(root, tmp_path):
  before = taken(root)
  assert before["images"] == 4
  shutil.copytree(root, tmp_path / "copy")
  assert describe_images(before, taken(tmp_path / "copy")) == ""
  root.rename(tmp_path / "moved")
  assert describe_images(before, taken(tmp_path / "moved" / "train", "")) == ""


def rename_class(train):
  (train / "ant").rename(train / "zebra")


CHANGES = {
  "an image more": (lambda train: (train / "ant/3.png").touch(), "5 images instead of 4"),
  "a damaged one removed": (lambda train: (train / "bee/1.png").unlink(), "3 images instead of 4"),
  "a class renamed": (rename_class, "4 images as before, but under other names"),
  "an image renamed": (lambda train: (train / "ant/1.png").rename(train / "ant/9.png"), "4 images"),
  "an image of another class": (
    lambda train: (train / "ant/1.png").rename(train / "bee/0.png"),
    "4 images as before",
  ),
  "a folder in between": (
    lambda train: (train / "bee/deep").rename(train / "bee/deeper"),
    "4 images as before",
  ),
  "another format": (
    lambda train: (train / "ant/1.png").rename(train / "ant/1.jpg"),
    "4 images as before",
  ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_a_folder_is_noticed(root, name):
  before = taken(root)
  change, expected = CHANGES[name]
  change(root / "train")
  assert describe_images(before, taken(root)).startswith(expected)


def test_what_is_no_image_changes_nothing(root):
  before = taken(root)
  (root / "train/ant/notes.txt").touch()
  assert taken(root) == before


def write_shard(path: Path, records: list[bytes]) -> None:
  with path.open("wb") as file:
    for record in records:
      length = len(record).to_bytes(8, "little")
      file.write(length + masked_crc(length).to_bytes(4, "little"))
      file.write(record + masked_crc(record).to_bytes(4, "little"))
  assert path.stat().st_size == sum(FRAME + len(record) for record in records)


def test_a_tfds_directory_is_known_by_its_info(tmp_path):
  records = [example(b"image", i % 7) for i in range(12)]

  def taken(name: str, split: str = "train") -> dict:
    data = ConfigDict(dict(source="tfrecord", name=str(tmp_path / name), data_dir=""))
    return fingerprint(open_source(data, split))

  for name, lengths in (("a", (5, 7)), ("same", (5, 7)), ("other", (7, 5)), ("less", (5, 6))):
    shards = [records[: lengths[0]], records[lengths[0] :][: lengths[1]]]
    write_tfds(tmp_path / name, "tfrecord", shards, write_shard)
  assert describe_images(taken("a"), taken("same")) == ""
  assert describe_images(taken("a"), taken("other")).startswith("12 images as before, but")
  assert describe_images(taken("a"), taken("less")) == "11 images instead of 12"
  assert describe_images(taken("a", "train[:6]"), taken("a", "train[6:]")).startswith("6 images as")
  assert describe_images(taken("a", "train[:50%]"), taken("same", "train[:6]")) == ""


class Ordinary:
  """A source of one's own, which says no more than it must."""

  class_names = ("a", "b")

  def __len__(self):
    return 3


class Named(Ordinary):
  def record_names(self):
    return (f"row {i}".encode() for i in range(3))


def test_sources_of_ones_own():
  assert fingerprint(Ordinary()) == {"images": 3, "names": None}
  assert describe_images(fingerprint(Ordinary()), fingerprint(Ordinary())) is None
  assert describe_images(fingerprint(Ordinary()), fingerprint(Named())) is None
  assert describe_images(fingerprint(Named()), fingerprint(Named())) == ""
  assert describe_images({"images": 4, "names": None}, fingerprint(Named())) == (
    "3 images instead of 4"
  )


@pytest.mark.parametrize(
  ("before", "now", "expected"),
  [
    (["a", "b"], ["a", "b"], ""),
    (["a", "b"], ["b", "z"], "its classes are with z and without a"),
    (["a", "b"], ["a", "b", "c", "d"], "its classes are with c, d"),
    (["0", "1", "10", "2"], ["0", "1", "2", "10"], "its classes are in another order"),
    (["a", "b\n\x1b[2J"], ["a"], r"its classes are without b\n\x1b[2J"),
    (list("abcdefgh"), ["a"], "its classes are without b, c, d, e, f and 2 more"),
  ],
)
def test_classes_are_compared_by_name_and_order(before, now, expected):
  assert describe_classes(before, now) == expected
