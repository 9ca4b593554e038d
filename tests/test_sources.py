"""The digits data set, TFDS sources, and that all kinds of sources agree."""

import io
import subprocess
import sys

import ml_collections
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from helpers import ROOT
from image_sets import CLASSES, example, write_folder, write_tfds, write_tfrecord_file
from PIL import Image
from sklearn.datasets import load_digits
from worker_sources import Shades

from gfnet_jax.data.pipeline import Reading, train_batches
from gfnet_jax.data.samples import Share
from gfnet_jax.data.sources.open import SOURCES, check_classes, open_source
from gfnet_jax.data.sources.recognise import recognise
from gfnet_jax.data.sources.records import BadRecordError
from gfnet_jax.data.sources.tfds import TfdsSource
from gfnet_jax.data.transforms import TrainTransform
from gfnet_jax.errors import UserError


def test_digits_hold_every_scan_once_in_stratified_splits(data_dir):
  train, test = TfdsSource("digits", "train"), TfdsSource("digits", "test")
  assert (len(train), len(test)) == (1437, 360)
  found = {}
  for split in (train, test):
    counts = np.zeros(10, int)
    for i in range(len(split)):
      record = split[i]
      pixels = np.asarray(Image.open(io.BytesIO(record.image)))
      found.setdefault((pixels.tobytes(), record.label), []).append(record.name)
      counts[record.label] += 1
    assert counts.max() - counts.min() <= len(split) // 100 + 2
  images, labels = load_digits(return_X_y=True)
  pixels = np.rint(images * 255 / 16).astype(np.uint8)
  expected = {}
  for image, label in zip(pixels, labels, strict=True):
    expected[image.tobytes(), label] = expected.get((image.tobytes(), label), 0) + 1
  assert {key: len(names) for key, names in found.items()} == expected
  assert found.popitem()[1][0].startswith("digits t")


def test_the_directory_of_a_data_set_serves_as_its_name(data_dir):
  by_name = TfdsSource("digits", "test", str(data_dir))
  by_directory = TfdsSource(str(data_dir / "digits" / "1.0.0"), "test")
  assert by_name[7][:2] == by_directory[7][:2]
  assert by_directory.class_names == [str(i) for i in range(10)]


@pytest.mark.parametrize(
  ("name", "split", "message"),
  [
    ("digitz", "train", "data set 'digitz' not found"),
    ("digits", "validation", "split 'validation' of digits not found"),
    ("mnist", "train", "'mnist' is not prepared"),
    ("digits", "train[:0]", "split 'train[:0]' of digits is empty or not a valid slice"),
    ("digits", "train[:", "is empty or not a valid slice"),
  ],
)
def test_mistakes_are_named_in_one_line(data_dir, name, split, message):
  data = ml_collections.ConfigDict(dict(name=name, data_dir=""))
  with pytest.raises(UserError, match=message.replace("[", r"\[")) as caught:
    open_source(data, split)
  assert "\n" not in str(caught.value)


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").touch()
  data = ml_collections.ConfigDict(dict(name="digits", data_dir=str(tmp_path / "file")))
  with pytest.raises(UserError, match=r"cannot write the data set to .*; set data_dir"):
    open_source(data, "train")


def test_classes_must_be_the_models(data_dir):
  with pytest.raises(UserError, match="has 10 classes, the model has 1000"):
    check_classes(TfdsSource("digits", "test"), 1000)


def write_array_record_file(path, records):
  writer = ArrayRecordWriter(str(path), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


def data_section(**fields):
  return ml_collections.ConfigDict(dict(data_dir="") | fields)


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
  """The `data` sections of the same 200 JPEGs as folder, ArrayRecord and TFRecord."""
  root = tmp_path_factory.mktemp("sources")
  paths = write_folder(root / "folder", 200)
  examples = [
    example(path.read_bytes(), CLASSES.index(path.parent.name), id=path.name.encode())
    for path in paths
  ]
  shards = [examples[:100], examples[100:101], examples[101:]]
  write_tfds(root / "array_record", "array_record", shards, write_array_record_file)
  write_tfds(root / "tfrecord", "tfrecord", shards, write_tfrecord_file)
  return {
    "folder": data_section(source="folder", name=str(root / "folder")),
    "array_record": data_section(name=str(root / "array_record")),
    "tfrecord": data_section(source="tfrecord", name=str(root / "tfrecord"), verify_crc=True),
  }


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_same_images_give_the_same_batches_from_every_kind_of_source(sections):
  batches = {}
  for kind, section in sections.items():
    source = open_source(section, "train")
    assert len(source) == 200
    assert source.class_names == list(CLASSES)
    batches[kind] = list(
      train_batches(
        source,
        TrainTransform(image_size=40),
        seed=3,
        share=Share(40),
        first_batch=0,
        num_batches=6,
        reading=Reading(),
      )
    )
  for one, *others in zip(*batches.values(), strict=True):
    assert len(np.unique(one["label"])) == len(CLASSES)
    for other in others:
      for key in one:
        np.testing.assert_array_equal(one[key], other[key])


def test_slices_of_every_tfds_format(sections):
  for kind in ("array_record", "tfrecord"):
    whole, part = (open_source(sections[kind], split) for split in ("train", "train[99:103]"))
    assert [part[i].image for i in range(len(part))] == [whole[i].image for i in range(99, 103)]


def test_the_wrong_kind_of_source_is_named_with_the_right_one(sections):
  for kind, right, wrong in (
    ("tfrecord", "tfrecord", "tfds"),
    ("array_record", "tfds", "tfrecord"),
  ):
    section = sections[kind].copy_and_resolve_references()
    section.source = wrong
    with pytest.raises(UserError, match=f"set data.source={right}$"):
      open_source(section, "train")


@pytest.mark.parametrize(
  ("kind", "message"),
  [
    (
      "zip",
      r"unknown data\.source 'zip', expected one of tfds, tfrecord, folder, photos, "
      "imagenet_set, domains, masks, shapes$",
    ),
    ("tfrecords", r"did you mean tfrecord\?$"),
  ],
)
def test_an_unknown_kind_of_source_is_named_with_those_there_are(kind, message):
  with pytest.raises(UserError, match=message):
    open_source(data_section(name="digits", source=kind), "train")


@pytest.mark.parametrize("entry", [Shades, "worker_sources:Shades"])
def test_a_source_of_ones_own_takes_an_entry_and_has_fields_of_its_own(monkeypatch, entry):
  monkeypatch.setitem(SOURCES, "shades", entry)
  shades = dict(dark=(0, 50), light=(200, 250))
  data = ml_collections.ConfigDict(dict(source="shades", shades=shades))
  source = open_source(data, "dark+light")
  check_classes(source, 2)
  transform = TrainTransform(image_size=8, crop="pad", padding=0, auto_augment="", color_jitter=0)
  options = dict(seed=0, share=Share(4), first_batch=0, num_batches=2, reading=Reading(workers=1))
  for batch in train_batches(source, transform, **options):
    found = sorted(zip(batch["image"][:, 0, 0, 0].tolist(), batch["label"].tolist(), strict=True))
    assert found == [(0, 0), (50, 0), (200, 1), (250, 1)]
  assert len(open_source(data, "light")) == 2
  with pytest.raises(UserError, match="split 'black' of shades is empty"):
    open_source(data, "black")


def test_a_name_alone_tells_the_kind_and_the_split(tmp_path):
  for directory in ("flat/cat", "split/val/cat", "split/train/cat"):
    (tmp_path / directory).mkdir(parents=True)
  tfds_directory = write_tfds(tmp_path / "set", "tfrecord", [[]], write_tfrecord_file)
  for usual in ("tfds", "tfrecord", "folder"):
    assert recognise(str(tmp_path / "flat"), usual) == ("folder", "")
    assert recognise(str(tmp_path / "split"), usual) == ("folder", "val")
  for usual in ("tfds", "tfrecord", "folder"):
    assert recognise(str(tfds_directory), usual) == ("tfrecord", None)
  assert recognise("imagenet2012") == recognise("imagenet2012", "folder") == ("tfds", None)
  assert recognise("imagenet2012", "tfrecord") == ("tfrecord", None)
  for name in (str(tfds_directory), "imagenet2012"):
    assert recognise(name, "shades") == ("shades", None)
  # A network that segments is not evaluated on what it was trained with, whatever the name.
  assert recognise(str(tmp_path), "shapes") == ("masks", "validation")
  assert recognise(str(tmp_path), "masks") == recognise("digits", "masks") == ("masks", None)
  assert recognise("shapes", "masks") == recognise("shapes", "shapes") == ("shapes", "test")


def test_the_names_of_the_sources_cost_no_slow_import():
  code = "import sys; from gfnet_jax.data.sources.open import SOURCES; print(*sys.modules)"
  found = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  modules = set(found.stdout.split())
  assert "gfnet_jax.data.sources.open" in modules
  assert not modules & {"tensorflow_datasets", "grain", "PIL", "jax", "flax", "numpy"}


def test_a_damaged_example_is_a_bad_record(tmp_path):
  records = [b"\xff" * 20, b"", example(b"jpeg", 1)]
  directory = write_tfds(tmp_path / "set", "array_record", [records], write_array_record_file)
  source = open_source(data_section(name=str(directory)), "train")
  for index in (0, 1):
    with pytest.raises(BadRecordError, match=rf"train\[{index}\] cannot be read"):
      source[index]
  assert source[2][:2] == (b"jpeg", 1)


def test_damaged_array_record_blocks_are_bad_records(tmp_path):
  directory = write_tfds(
    tmp_path / "set",
    "array_record",
    [[example(bytes(range(256)) * 40, i) for i in range(3)]],
    write_array_record_file,
  )
  (file,) = directory.glob("*.array_record*")
  data = bytearray(file.read_bytes())
  at = data.index(b"\x28\xb5\x2f\xfd")  # where zstd begins
  data[at + 8] ^= 0xFF
  file.write_bytes(data)
  source = open_source(data_section(name=str(directory)), "train")
  with pytest.raises(BadRecordError, match=r"train\[0\] cannot be read"):
    source[0]
