"""TFRecord files: the format, the cached index, damage."""

import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from image_sets import crc32c, masked, write_tfrecord_file

from gfnet_jax.data.sources import tfrecord
from gfnet_jax.data.sources.records import BadRecordError
from gfnet_jax.data.sources.tfrecord import TfrecordFiles, index_records, masked_crc
from gfnet_jax.errors import UserError

RECORDS = [bytes([i]) * (i * 37 % 101) for i in range(20)]  # one of them empty


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "pictures.tfrecord"
  write_tfrecord_file(path, RECORDS)
  return path


def instruction(path, skip=0, take=20, count=20):
  return SimpleNamespace(filename=str(path), skip=skip, take=take, examples_in_shard=count)


def test_the_checksum_is_the_published_one():
  assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's polynomial, its usual check value
  assert masked_crc(b"123456789") == masked(0xE3069283)


def test_records_are_read_at_random_over_files_and_slices(path, tmp_path):
  other = tmp_path / "other.tfrecord"
  write_tfrecord_file(other, RECORDS[::-1])
  files = TfrecordFiles([instruction(path, 3, 4), instruction(other, 0, 2)], verify_crc=True)
  expected = RECORDS[3:7] + RECORDS[::-1][:2]
  assert len(files) == 6
  for i in np.random.default_rng(0).permutation(6):
    assert files[i] == expected[i]
    assert pickle.loads(pickle.dumps(files))[i] == expected[i]


def test_the_index_is_built_once_and_again_when_the_file_changes(path, monkeypatch):
  built = []
  original = index_records
  monkeypatch.setattr(tfrecord, "index_records", lambda path: built.append(path) or original(path))
  for _ in range(2):
    assert TfrecordFiles([instruction(path)])[7] == RECORDS[7]
  assert len(built) == 1
  write_tfrecord_file(path, RECORDS[:5])
  assert TfrecordFiles([instruction(path, 0, 5, 5)])[4] == RECORDS[4]
  os.utime(path, ns=(0, 0))
  TfrecordFiles([instruction(path, 0, 5, 5)])
  assert len(built) == 3


def test_a_damaged_index_is_built_anew(path, tmp_path):
  TfrecordFiles([instruction(path)])
  (index,) = (tmp_path / "cache").glob("*/*.npz")
  for damaged in (b"", index.read_bytes()[:100], index.read_bytes()[:-1] + b"x"):
    index.write_bytes(damaged)
    assert TfrecordFiles([instruction(path)])[3] == RECORDS[3]


def test_flipped_bits_are_found_when_asked_for(path):
  data = bytearray(path.read_bytes())
  at = int(index_records(path)[7]) + 12
  data[at] ^= 1
  path.write_bytes(data)
  assert TfrecordFiles([instruction(path)])[7] != RECORDS[7]
  with pytest.raises(BadRecordError, match="wrong checksum"):
    TfrecordFiles([instruction(path)], verify_crc=True)[7]
  assert TfrecordFiles([instruction(path)], verify_crc=True)[8] == RECORDS[8]


@pytest.mark.parametrize("size", [1, 11, 100, -1])
def test_a_file_that_is_cut_off_is_refused(path, size):
  path.write_bytes(path.read_bytes()[:size])
  with pytest.raises(UserError, match=r"cut off|damaged"):
    TfrecordFiles([instruction(path)])


def test_what_is_no_tfrecord_is_refused(path):
  path.write_bytes(b"\x89PNG" * 100)
  with pytest.raises(UserError, match="damaged or no TFRecord"):
    TfrecordFiles([instruction(path)])


def test_missing_files_and_records_are_named(path, tmp_path):
  with pytest.raises(UserError, match=r"cannot read .*absent"):
    TfrecordFiles([instruction(tmp_path / "absent")])
  with pytest.raises(UserError, match=r"holds 20 records, its dataset_info\.json says 21"):
    TfrecordFiles([instruction(path, count=21)])


def test_a_file_that_shrinks_afterwards_is_a_bad_record(path):
  files = TfrecordFiles([instruction(path)])
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(BadRecordError, match="has changed"):
    files[19]
