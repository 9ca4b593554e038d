"""The digits data set and TFDS sources."""

import io

import ml_collections
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from gfnet_jax.data.sources import TfdsSource, check_classes, open_source
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
    ("digits", "train[:0]", "split 'train[:0]' of digits is empty or no valid slice"),
    ("digits", "train[:", "is empty or no valid slice"),
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
