"""TFDS data sets that are broken, misnamed or asked for what they do not hold."""

import json
import os

import ml_collections
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from image_sets import CLASSES, example, write_tfds, write_tfrecord_file

from gfnet_jax.data.sources import tfds_info
from gfnet_jax.data.sources.open import open_source
from gfnet_jax.data.sources.recognise import recognise
from gfnet_jax.data.sources.tfds import TfdsSource, _may_be_opened
from gfnet_jax.data.sources.tfds_info import check_info_files, file_format, prepared_versions
from gfnet_jax.errors import UserError
from gfnet_jax.inference.evaluate import data_section
from gfnet_jax.inference.saved_model import SavedModel


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_array_record_file(path, records):
  writer = ArrayRecordWriter(str(path), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


@pytest.fixture
def directory(tmp_path):
  """A data set of 5 images in two ArrayRecord files."""
  records = [example(f"image {i}".encode(), i) for i in range(5)]
  shards = [records[:2], records[2:]]
  return write_tfds(tmp_path / "set", "array_record", shards, write_array_record_file)


def change_info(directory, change):
  info = json.loads((directory / "dataset_info.json").read_text())
  change(info)
  (directory / "dataset_info.json").write_text(json.dumps(info))


def check_one_line(name, split="train"):
  with pytest.raises(UserError) as caught:
    open_source(ml_collections.ConfigDict(dict(name=str(name), data_dir="")), split)
  assert "\n" not in str(caught.value)
  return str(caught.value)


BROKEN = {
  "empty": ("dataset_info.json", ""),
  "cut off": ("dataset_info.json", '{"name": "pictures", "spl'),
  "a list": ("dataset_info.json", "[]"),
  "a number": ("dataset_info.json", "1e999"),
  "nested": ("dataset_info.json", "[" * 10**5),
  "nested objects": ("dataset_info.json", '{"a":' * 10**5),
  "another field": ("dataset_info.json", '{"colour": "red"}'),
  "no text": ("dataset_info.json", "\udcff"),
  "large": ("dataset_info.json", " " * 2**22 + "{}"),
  "no features": ("features.json", "{}"),
  "features of nothing": ("features.json", '{"featuresDict": {"features": {}}}'),
  "features nested": ("features.json", '{"a":[' * 10**5),
  "features that import": ("features.json", '{"pythonClassName": "antigravity.Feature"}'),
  "features of a class that is no text": ("features.json", '{"a": [{"pythonClassName": 3}]}'),
  "labels twice": ("label.labels.txt", "ant\n" * 7),
  "labels missing": ("label.labels.txt", "ant\nbee\n"),
  "labels that are large": ("label.labels.txt", "x\n" * 2**22),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_broken_descriptions_are_one_line(directory, case):
  name, text = BROKEN[case]
  (directory / name).write_bytes(text.encode(errors="surrogateescape"))
  assert str(directory) in check_one_line(directory)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "label.labels.txt"])
def test_a_pipe_is_not_waited_for(directory, name):
  (directory / name).unlink()
  os.mkfifo(directory / name)
  check_one_line(directory)


CHANGES = {
  "fewer records": lambda info: info["splits"][0].update(shardLengths=["2", "2"]),
  "more records": lambda info: info["splits"][0].update(shardLengths=["2", "4"]),
  "negative records": lambda info: info["splits"][0].update(shardLengths=["-2", "7"]),
  "huge records": lambda info: info["splits"][0].update(shardLengths=["2", str(2**62)]),
  "one file less": lambda info: info["splits"][0].update(shardLengths=["5"]),
  "files elsewhere": lambda info: info["splits"][0].update(filepathTemplate="/etc/{SPLIT}"),
  "a template of nothing": lambda info: info["splits"][0].update(filepathTemplate="{NOTHING}"),
  "a name twice": lambda info: info["splits"].append(dict(info["splits"][0], shardLengths=["1"])),
  "another name": lambda info: info.update(name="drawings"),
  "no version": lambda info: info.update(version="latest"),
  "a format of nobody": lambda info: info.update(fileFormat="zip"),
  "another format": lambda info: info.update(fileFormat="parquet"),
  "no splits": lambda info: info.pop("splits"),
}


@pytest.mark.parametrize("case", list(CHANGES))
def test_descriptions_of_something_else_are_one_line(directory, case):
  change_info(directory, CHANGES[case])
  check_one_line(directory)


def test_a_file_that_is_missing_is_named(directory):
  (path,) = directory.glob("*00001-of-00002")
  path.unlink()
  assert "00001-of-00002 cannot be read" in check_one_line(directory)


@pytest.mark.parametrize("count", [-1, 0, 10**9, 2**62])
def test_a_number_of_classes_that_is_none(directory, count):
  (directory / "label.labels.txt").unlink()
  path = directory / "features.json"
  path.write_text(path.read_text().replace('"numClasses": "7"', f'"numClasses": "{count}"'))
  check_one_line(directory)


@pytest.mark.parametrize(
  "split",
  [
    *(
      "train[5:2]",
      "train[3:1]+train",
      "train[-1:-3]",
      "train[9:]",
      "train[:0%]",
      "train[60%:40%]",
    ),
    *("train[", "train]", "train[a:b]", "train[::2]", "train[1]", "train[:1e3]", "train[nan%:]"),
    *("train[:101%]", "train[\0:]", "+", "train+", "train+test", "", " ", "TRAIN", "../train", "*"),
    *(
      "train[:" + "9" * 5000 + "]",
      "+".join(["train[:1]"] * 3000),
      "\x1b[31m",
      "a\nb",
      "train[1:]]",
    ),
  ],
)
def test_splits_that_are_none_are_one_line(directory, split):
  message = check_one_line(directory, split)
  assert "empty or not a valid slice" in message or "not found" in message


def test_slices_are_pythons(directory):
  """Of which those that end before they begin are refused: TFDS would take other records."""
  for first in (-4, -1, 0, 2, 4, 5):
    for last in range(-5, 7):
      expected = list(range(5))[first:last]
      try:
        source = TfdsSource(str(directory), f"train[{first}:{last}]")
      except UserError:
        assert expected == [] or last > 5
      else:
        assert [source[i].label for i in range(len(source))] == expected


@pytest.mark.parametrize(
  ("split", "expected"), [("train[1:3]", [1, 2]), ("train[-2:]", [3, 4]), ("train[:40%]", [0, 1])]
)
def test_splits_that_are_some(directory, split, expected):
  source = TfdsSource(str(directory), split)
  assert [source[i].label for i in range(len(source))] == expected


@pytest.mark.parametrize(
  "name",
  [
    *("digits:9.9.9", "digits/large", "digits/large:1.0.0", "huggingface:mnist", "kaggle:cats"),
    *("a/b/c/d", "../..", "~", "x" * 5000, "di\0gits", "di gits", "gs://bucket/set", "s3://b/s"),
    *("https://example.org/set", "{}", "%s", "-", ".", "digits:", "\x1b[31mdigits", "\udcff"),
  ],
)
def test_names_of_nothing_are_one_line(name, capfd):
  check_one_line(name)
  assert "pip install" not in capfd.readouterr().err


def test_the_kind_of_a_directory_is_recognised(directory, tmp_path):
  tfrecord = write_tfds(tmp_path / "old", "tfrecord", [[example(b"x", 0)]], write_tfrecord_file)
  for usual in ("tfds", "tfrecord", "folder"):
    assert recognise(str(directory), usual) == ("tfds", None)
    assert recognise(str(tfrecord), usual) == ("tfrecord", None)
  change_info(tfrecord, lambda info: info.pop("fileFormat"))  # as TFDS wrote before it had others
  assert recognise(str(tfrecord)) == ("tfrecord", None)


def test_the_kind_of_a_name_is_recognised_in_its_directory(tmp_path, monkeypatch):
  shards = [[example(b"x", 0)]]
  write_tfds(tmp_path / "all/pictures/1.0.0", "tfrecord", shards, write_tfrecord_file)
  write_tfds(tmp_path / "all/drawings/big/2.0.0", "array_record", shards, write_array_record_file)
  for usual in ("tfds", "tfrecord", "folder"):
    for name in ("pictures", "pictures:1.0.0"):
      assert recognise(name, usual, str(tmp_path / "all")) == ("tfrecord", None)
    for name in ("drawings", "drawings/big", "drawings/big:2.*.*"):
      assert recognise(name, usual, str(tmp_path / "all")) == ("tfds", None)
  assert recognise("pictures", "folder", str(tmp_path)) == ("tfds", None)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "all"))
  assert recognise("pictures") == ("tfrecord", None)
  saved = SavedModel(None, {}, run_config={"data": {"source": "folder", "data_dir": ""}})
  assert data_section(saved, name="pictures").source == "tfrecord"
  assert data_section(saved, name="pictures", source="tfds").source == "tfds"


def test_the_directory_above_the_versions_names_them(tmp_path):
  for version in ("1.0.0", "1.1.0"):
    path = tmp_path / "pictures" / version
    write_tfds(path, "tfrecord", [[example(b"x", 0)]], write_tfrecord_file)
  with pytest.raises(UserError, match=r"holds versions of a TFDS data set, .* name .*1\.1\.0$"):
    recognise(str(tmp_path / "pictures"))


def test_the_advice_for_the_wrong_kind_is_for_a_config_and_for_eval(directory):
  data = ml_collections.ConfigDict(dict(name=str(directory), source="tfrecord"))
  with pytest.raises(
    UserError, match=r"eval\.py --source tfds; in a config, set data\.source=tfds$"
  ):
    open_source(data, "train")


@pytest.fixture
def versions(tmp_path):
  """Makes the directory of a version in tmp_path, whose description is broken unless it is good."""

  def make(path, good=False):
    if good:
      records = [[example(b"image", 3)]]
      return write_tfds(tmp_path / path, "array_record", records, write_array_record_file)
    (tmp_path / path).mkdir(parents=True)
    (tmp_path / path / "dataset_info.json").write_text("{")
    return (tmp_path / path / "features.json").write_text('{"pythonClassName": "antigravity.F"}')

  return make


@pytest.mark.parametrize(
  ("name", "good", "broken"),
  [
    ("pictures", "1.0.0", ["0.9.0", "incomplete.ABC123_1.0.0", "1.0.0.incompleteXYZ", "old"]),
    ("pictures", "10.0.0", ["9.0.0", "2.10.0", "10.0.0.bak"]),
    ("pictures:1.0.0", "1.0.0", ["0.9.0", "2.0.0"]),
    ("pictures:1.*.*", "1.1.0", ["0.9.0", "2.0.0"]),
    ("pictures/big", "big/1.0.0", ["small/1.0.0", "big/0.1.0"]),
    ("pictures/big:1.0.0", "big/1.0.0", ["small/1.0.0", "big/2.0.0"]),
  ],
)
def test_versions_that_are_not_opened_may_be_broken(tmp_path, versions, name, good, broken):
  for path in broken:
    versions(f"pictures/{path}")
  versions(f"pictures/{good}", good=True)
  source = open_source(ml_collections.ConfigDict(dict(name=name, data_dir=str(tmp_path))), "train")
  assert source[0][:2] == (b"image", 3)
  assert recognise(name.partition(":")[0], "folder", str(tmp_path)).source == "tfds"


@pytest.mark.parametrize(
  ("name", "opened", "others"),
  [
    ("digits", "digits/1.0.0", ["digits/0.9.0", "digits/2.0.0", "digits/x/1.0.0"]),
    ("digits:2.0.0", "digits/2.0.0", ["digits/1.0.0"]),
    ("cifar10", "cifar10/3.0.2", ["cifar10/3.0.1", "cifar10/4.0.0"]),
    ("imagenet_resized", "imagenet_resized/8x8/0.1.0", ["imagenet_resized/16x16/0.1.0"]),
    ("imagenet_resized/64x64", "imagenet_resized/64x64/0.1.0", ["imagenet_resized/64x64/9.0.0"]),
    ("imagenet_resized/mine", "imagenet_resized/mine/2.0.0", ["imagenet_resized/mine/0.1.0"]),
    ("pictures", "pictures/2.0.0", ["pictures/1.0.0"]),
  ],
)
def test_the_version_that_is_opened_is_checked(tmp_path, versions, name, opened, others):
  for path in (opened, *others):
    versions(path)
  assert _may_be_opened(name, str(tmp_path)) == [tmp_path / opened]
  data = ml_collections.ConfigDict(dict(name=name, data_dir=str(tmp_path)))
  with pytest.raises(UserError) as caught:
    open_source(data, "train")
  assert f"{tmp_path / opened}/dataset_info.json cannot be read" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"fileFormat": 3}', "[" * 10**5, '"x"'])
def test_a_description_that_does_not_tell_leaves_the_usual_kind(directory, text):
  (directory / "dataset_info.json").write_text(text)
  assert recognise(str(directory), "tfrecord") == ("tfrecord", None)


@pytest.mark.parametrize("name", ["", "/", "..", "a/../..", "*", "x" * 300, "a\0b", "[", "a/b/c"])
def test_odd_names_are_looked_up_nowhere(tmp_path, name):
  write_tfds(tmp_path / "a/1.0.0", "tfrecord", [[]], write_tfrecord_file)
  assert prepared_versions(name, str(tmp_path)) == []
  assert prepared_versions("a", str(tmp_path)) == [tmp_path / "a/1.0.0"]


def test_the_limit_is_above_what_tfds_writes(directory):
  check_info_files(directory)
  assert file_format(directory) == "array_record"
  sizes = [path.stat().st_size for path in directory.iterdir() if path.suffix in (".json", ".txt")]
  assert 0 < max(sizes) < tfds_info.MAX_BYTES / 100
  assert list(CLASSES) == TfdsSource(str(directory), "train").class_names
