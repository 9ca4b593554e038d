"""Mutated caches, indices, archives and descriptions: one line, or the very same images."""

import io
import random
import tarfile
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from image_sets import CLASSES, example, write_tfds, write_tfrecord_file
from ml_collections import ConfigDict

from gfnet_jax.data.prepare import archives, splits
from gfnet_jax.data.sources.cache import cache_file, load_arrays
from gfnet_jax.data.sources.folder import FolderSource
from gfnet_jax.data.sources.open import open_source
from gfnet_jax.data.sources.recognise import recognise
from gfnet_jax.data.sources.records import BadRecordError
from gfnet_jax.data.sources.tfrecord import TfrecordFiles
from gfnet_jax.errors import UserError

pytestmark = pytest.mark.slow

TOKENS = (
  *(b'""', b"null", b"[]", b"{}", b"-1", b"0", b"1e999", b"NaN", b"true", b'"\\u0000"', b"\n"),
  *(b"99999999999999999999", b'"-9223372036854775808"', b"[" * 5000, b'{"a":' * 3000, b"\xff\xfe"),
  *(b"../../../../etc/passwd", b"/dev/zero", b"tensorflow_datasets.nothing.There", b"\x1b[31m"),
)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def mutate(data: bytes, rng: random.Random) -> bytes:
  """A flipped bit, another byte, or a part that is cut, repeated, blank or replaced by a token."""
  first, second = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
  short = min(second, first + rng.choice((1, 2, 8, 100)))
  kind = rng.randrange(7)
  if kind == 0:
    return data[:first] + bytes([data[first] ^ 1 << rng.randrange(8)]) + data[first + 1 :]
  if kind == 1:
    return data[:first] + rng.randbytes(1) + data[first + 1 :]
  if kind == 2:
    return data[:first]
  if kind == 3:
    return data[:first] + data[first:second] * 2 + data[second:]
  part = (b"", bytes(short - first), rng.choice(TOKENS))[kind - 4]
  return data[:first] + part + data[short:]


def mutations(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
  rng = random.Random(seed)
  for _ in range(count):
    mutated = data
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
      mutated = mutate(mutated, rng) if mutated else b""
    if mutated != data:
      yield mutated


def one_line_or(read: Callable[[], object]) -> object:
  """What `read` returns; None if it says in one line why not."""
  try:
    return read()
  except UserError as error:
    assert "\n" not in str(error)
    assert len(str(error)) < 2000
    return None


def test_listings(tmp_path):
  root = tmp_path / "images"
  for name in ("0", "1", "10", "2"):
    (root / name).mkdir(parents=True)
    for i in range(20):
      (root / name / f"{i}.png").touch()
  (root / "0/x.gif").touch()

  def read():
    source = FolderSource(str(root), "")
    return source.class_names, [(source[i].name, source[i].label) for i in range(len(source))]

  expected = read()
  file = cache_file("listing", root)
  for mutated in mutations(file.read_bytes(), 3000):
    file.write_bytes(mutated)
    assert load_arrays("listing", root) is None
  for mutated in mutations(file.read_bytes(), 200, seed=1):
    file.write_bytes(mutated)
    assert read() == expected


def test_the_index_of_a_tfrecord_file(tmp_path):
  path = tmp_path / "pictures.tfrecord"
  records = [bytes([i]) * (i * 37 % 101) for i in range(50)]
  write_tfrecord_file(path, records)
  instruction = SimpleNamespace(filename=str(path), skip=0, take=50, examples_in_shard=50)

  def read():
    files = TfrecordFiles([instruction], verify_crc=True)
    return [files[i] for i in range(len(files))]

  assert read() == records
  file = cache_file("tfrecord", path)
  whole = file.read_bytes()
  for mutated in mutations(whole, 3000):
    file.write_bytes(mutated)
    assert load_arrays("tfrecord", path) is None
  for mutated in mutations(whole, 100, seed=1):
    file.write_bytes(mutated)
    assert read() == records


def test_tfrecord_files_and_their_old_indices(tmp_path):
  """A file that changes below its cached index, times and size kept, gives no other record."""
  path = tmp_path / "pictures.tfrecord"
  records = [bytes([i]) * (i * 37 % 101) for i in range(50)]
  write_tfrecord_file(path, records)
  whole = path.read_bytes()
  instruction = SimpleNamespace(filename=str(path), skip=0, take=50, examples_in_shard=50)
  opened = TfrecordFiles([instruction], verify_crc=True)
  for mutated in mutations(whole, 3000):
    path.write_bytes(mutated)
    fresh = one_line_or(lambda: TfrecordFiles([instruction], verify_crc=True))
    for files in (opened, *([fresh] if fresh else [])):
      for i in range(50):
        try:
          assert files[i] == records[i]
        except BadRecordError as error:
          assert "\n" not in str(error)


def archive(name: str) -> bytes:
  stream = io.BytesIO()
  with tarfile.open(fileobj=stream, mode="w") as images:
    for i in range(3):
      member = tarfile.TarInfo(f"{name}_{i}.JPEG")
      member.size = 700 * i
      images.addfile(member, io.BytesIO(f"{name}{i}".encode() * 200))
  return stream.getvalue()


def test_tar_files(tmp_path, monkeypatch):
  """The headers: what is in the images, tar keeps no sum of."""
  monkeypatch.setattr(splits, "IMAGENET_IMAGES", {"train": 12})
  monkeypatch.setattr(splits, "imagenet_classes", lambda: list("abcd"))

  def read():
    found = archives.list_train_tar(path)
    splits.check_imagenet(tmp_path, {"train": found})
    return found

  path, stream = tmp_path / archives.TRAIN_TAR, io.BytesIO()
  with tarfile.open(fileobj=stream, mode="w") as outer:
    for name in archives.imagenet_classes()[:4]:
      member, data = tarfile.TarInfo(f"{name}.tar"), archive(name)
      member.size = len(data)
      outer.addfile(member, io.BytesIO(data))
  whole = stream.getvalue()
  path.write_bytes(whole)
  expected = read()
  for mutated in mutations(whole, 3000):
    path.write_bytes(mutated)
    found = one_line_or(read)
    if found is not None and len(mutated) == len(whole):
      assert found == expected
    elif found is not None:  # something was cut or repeated within the images or at the end
      assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]


def write_array_record(path, records):
  writer = ArrayRecordWriter(str(path), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "label.labels.txt"])
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_descriptions_of_tfds(tmp_path, name, file_format):
  """A description has no sum: what may differ unseen is the text of a class's name."""
  write_shard = {"array_record": write_array_record, "tfrecord": write_tfrecord_file}[file_format]
  records = [example(f"image {i}".encode(), i % len(CLASSES)) for i in range(5)]
  directory = write_tfds(tmp_path / "set", file_format, [records[:2], records[2:]], write_shard)
  kind = recognise(str(directory)).source
  section = ConfigDict(dict(name=str(directory), source=kind))

  def read():
    recognise(str(directory))
    source = open_source(section, "train")
    return source.class_names, [source[i][:2] for i in range(len(source))]

  expected = read()
  assert expected[0] == list(CLASSES)
  path = directory / name
  for mutated in mutations(path.read_bytes(), 1500):
    path.write_bytes(mutated)
    found = one_line_or(read)
    if found is not None:
      assert found[1] == expected[1]
      assert len(found[0]) == len(expected[0])
      assert found[0] == expected[0] or name == "label.labels.txt"
