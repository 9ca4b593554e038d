"""tools/prepare_tfds.py: what is incomplete, damaged, misnamed or interrupted."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile

import ml_collections
import pytest
from helpers import HANGS, ROOT
from image_sets import CLASSES, write_folder

from gfnet_jax.data.prepare import archives, splits, write
from gfnet_jax.data.prepare.archives import Entry
from gfnet_jax.data.sources.open import open_source
from gfnet_jax.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tar(members: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
  """An archive of files by name."""
  stream = io.BytesIO()
  with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
    for name, data in members.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return stream.getvalue()


def train_tar(labels=(3, 999), images: int = 2) -> bytes:
  """ImageNet's training archive in small."""
  names = archives.imagenet_classes()
  return tar(
    {
      f"{names[label]}.tar": tar(
        {f"{names[label]}_{i}.JPEG": f"{label} {i}".encode() for i in range(images)}
      )
      for label in labels
    }
  )


@pytest.fixture
def imagenet_of_four(monkeypatch):
  """ImageNet has two classes of two images for training, and four for validation."""
  monkeypatch.setattr(splits, "IMAGENET_IMAGES", {"train": 4, "validation": 4})
  monkeypatch.setattr(splits, "imagenet_classes", lambda: ["a", "b"])


def entries(*counts: int) -> list[Entry]:
  return [Entry(label, f"{i}", "") for label, count in enumerate(counts) for i in range(count)]


@pytest.mark.parametrize(
  ("found", "message"),
  [
    (dict(train=entries(2, 2)), "holds 0 images of 0 classes for the split validation, expected"),
    (dict(train=entries(2, 1), validation=entries(2, 2)), "holds 3 images of 2 classes for"),
    (dict(train=entries(4), validation=entries(2, 2)), "holds 4 images of 1 classes for"),
    (dict(train=entries(2, 2), validation=entries(3, 2)), "holds 5 images of 2 classes for"),
    (dict(validation=entries(2, 2)), "holds 0 images of 0 classes for the split train"),
  ],
)
def test_imagenet_is_counted(tmp_path, imagenet_of_four, found, message):
  splits.check_imagenet(tmp_path, dict(train=entries(2, 2), validation=entries(2, 2)))
  with pytest.raises(UserError, match=message) as caught:
    splits.check_imagenet(tmp_path, found)
  assert "another --name" in str(caught.value)


def test_imagenet_has_its_published_numbers():
  """Russakovsky et al., 2015 (arXiv:1409.0575), table 2."""
  assert splits.IMAGENET_IMAGES == {"train": 1281167, "validation": 50000}


def test_a_few_classes_of_imagenet_are_not_done(tmp_path, in_process):
  (tmp_path / archives.TRAIN_TAR).write_bytes(train_tar())
  code, _, error = in_process("tools/prepare_tfds.py", tmp_path, "--output", tmp_path / "out")
  assert code == 2
  assert "holds 4 images of 2 classes for the split train, expected ImageNet's 1281167" in error
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("name", "folders"),
  [
    ("sketch", ["train"]),
    pytest.param("subset", ["train", "val"], marks=pytest.mark.slow),
    pytest.param("imagenet_half", ["val", "extra"], marks=pytest.mark.slow),
  ],
)
def test_other_data_sets_of_the_same_classes_are_taken(
  tmp_path, monkeypatch, in_process, name, folders
):
  classes, prepared = archives.imagenet_classes(), []
  monkeypatch.setattr(write, "prepare", lambda *arguments, **_: prepared.append(arguments))
  for folder in folders:
    for wnid in classes:
      (tmp_path / f"pictures/{folder}/{wnid}").mkdir(parents=True)
      (tmp_path / f"pictures/{folder}/{wnid}/0.JPEG").touch()
  command = ["tools/prepare_tfds.py", tmp_path / "pictures", "--output", tmp_path / "out"]
  code, _, error = in_process(*command, "--name", name)
  assert code == 0, error
  ((directory, _, _, found, images),) = prepared
  assert (directory, found) == (tmp_path / "out" / name / "1.0.0", classes)
  assert [len(entries) for entries in images.values()] == [1000] * len(folders)
  code, _, error = in_process(*command)  # as ImageNet, by default
  assert (code, len(prepared)) == (2, 1)
  assert "expected ImageNet's 1281167 of 1000" in error


def test_an_archive_is_whole_or_refused(tmp_path):
  """Wherever it is cut, also between two classes; each byte of a header counts."""
  path, whole = tmp_path / archives.TRAIN_TAR, train_tar(images=1)
  path.write_bytes(whole)
  assert [entry.read() for entry in archives.list_train_tar(path)] == [b"3 0", b"999 0"]
  end = len(whole.rstrip(b"\0"))
  second = whole.index(f"{archives.imagenet_classes()[999]}.tar".encode())
  for size in (0, 1, 511, 512, 1000, 1536, second - 1, second, second + 512, end):
    path.write_bytes(whole[:size])
    with pytest.raises(UserError, match="cannot be read as a tar file"):
      archives.list_train_tar(path)
  for at in (second, second + 130, second + 150, 512, 512 + 140):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    with pytest.raises(UserError, match="cannot be read as a tar file"):
      archives.list_train_tar(path)


def test_a_class_does_not_run_on_into_the_next(tmp_path):
  """Its archive has lost its end, and the next member's header follows where it was."""
  names = archives.imagenet_classes()
  cut = tar({f"{names[3]}_0.JPEG": b"image"})[:1024]
  path = tmp_path / archives.TRAIN_TAR
  path.write_bytes(tar({f"{names[3]}.tar": cut, f"{names[999]}.tar": tar({"x.JPEG": b"y"})}))
  with pytest.raises(UserError, match="cannot be read as a tar file"):
    archives.list_train_tar(path)


@pytest.mark.parametrize(
  "header",
  [
    dict(type=tarfile.GNUTYPE_LONGNAME, size=8 * 10**9),
    dict(type=tarfile.XHDTYPE, size=8 * 10**9),
    dict(type=tarfile.REGTYPE, size=-512),
    dict(type=tarfile.DIRTYPE, size=-1024),
    dict(type=tarfile.GNUTYPE_SPARSE, size=512),
    dict(type=tarfile.REGTYPE, size=2**62),
  ],
)
def test_headers_that_ask_for_gigabytes_or_lead_back(tmp_path, header):
  member = tarfile.TarInfo("n01440764.tar")
  member.type, member.size = header["type"], header["size"]
  first = tarfile.TarInfo("n01443537.tar")
  first.size = 10240
  path = tmp_path / archives.TRAIN_TAR
  inner = tar({"n01443537_0.JPEG": b"x"})
  path.write_bytes(first.tobuf() + inner + member.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
  with pytest.raises(UserError, match="cannot be read as a tar file"):
    archives.list_train_tar(path)


def test_a_thousand_headers_of_one_name(tmp_path):
  long = tarfile.TarInfo("././@LongLink")
  long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1
  path = tmp_path / archives.TRAIN_TAR
  path.write_bytes((long.tobuf() + bytes(512)) * 5000 + bytes(10240))
  with pytest.raises(UserError, match="cannot be read as a tar file"):
    archives.list_train_tar(path)


def test_images_of_another_class_are_named(tmp_path):
  names = archives.imagenet_classes()
  path = tmp_path / archives.TRAIN_TAR
  path.write_bytes(tar({f"{names[3]}.tar": tar({f"{names[4]}_0.JPEG": b"x"})}))
  with pytest.raises(UserError, match=f"holds {names[4]}_0.JPEG in {names[3]}.tar, expected"):
    archives.list_train_tar(path)


@pytest.mark.parametrize("name", ["x.JPEG", "ILSVRC2012_val_00000003.JPEG", "../a"])
def test_images_of_no_validation_are_named(tmp_path, monkeypatch, name):
  original = archives._imagenet_list
  monkeypatch.setattr(archives, "_imagenet_list", lambda list_name: original(list_name)[:2])
  path = tmp_path / archives.VALIDATION_TAR
  path.write_bytes(tar({"ILSVRC2012_val_00000001.JPEG": b"x", name: b"y"}))
  with pytest.raises(UserError, match=r"expected ILSVRC2012_val_0000000.\.JPEG in its place"):
    archives.list_validation_tar(path)


@pytest.mark.parametrize(
  ("name", "version", "count"),
  [("cifar10", "3.0.2", 10), ("mnist", "3.0.1", 10), ("digits", "1.0.0", 10), ("flowers", "", 0)],
)
def test_names_that_tfds_knows_have_its_version_and_classes(name, version, count):
  found = splits.find_registered(name)
  assert (found.version, len(found.classes)) == (version, count) if version else found is None


@pytest.mark.parametrize("name", ["imagenet_resized", "voc", "imdb_reviews", "coco"])
def test_names_of_other_data_sets_are_refused(name):
  with pytest.raises(UserError, match=f"--name {name} is a data set of TFDS .*choose another"):
    splits.find_registered(name)


def test_a_name_that_tfds_knows_wants_its_classes(tmp_path, in_process):
  write_folder(tmp_path / "pictures", 7)
  code, _, error = in_process(
    "tools/prepare_tfds.py", tmp_path / "pictures", "--output", tmp_path / "out", "--name", "mnist"
  )
  assert (code, error.count("\n")) == (2, 1)
  assert f"has a folder {CLASSES[0]}, which is not one of the data set's 10 classes" in error


@pytest.mark.parametrize(
  ("folders", "message"),
  [
    (["val", "validation"], "holds both val and validation"),
    (["train", "two words"], "a folder 'two words', expected splits named by letters"),
    (["train", "all"], "a folder 'all', expected"),
    (["train", "a\nb"], r"a folder 'a\\\\nb', expected"),
    ([".ipynb_checkpoints"], "holds neither folders nor"),
    ([], "holds neither folders nor"),
  ],
)
def test_folders_that_are_no_splits(tmp_path, folders, message):
  for folder in folders:
    (tmp_path / folder).mkdir()
  with pytest.raises(UserError, match=message):
    splits.find_splits(tmp_path)


def test_hidden_folders_are_no_splits(tmp_path):
  for folder in ("train", "val", ".Trash", ".ipynb_checkpoints", "__MACOSX", "@eaDir"):
    (tmp_path / folder).mkdir()
  assert splits.find_splits(tmp_path) == dict(train=tmp_path / "train", validation=tmp_path / "val")


def test_a_split_that_comes_later_is_named(tmp_path):
  directory = tmp_path / "set"
  directory.mkdir()
  splits.check_not_complete(directory, ["train"])
  (directory / "dataset_info.json").write_text(json.dumps({"splits": [{"name": "train"}]}))
  with pytest.raises(UserError, match="is complete; remove it"):
    splits.check_not_complete(directory, ["train"])
  with pytest.raises(UserError, match="is complete, but without extra, validation; remove it"):
    splits.check_not_complete(directory, ["train", "validation", "extra"])


def test_a_disk_that_is_full_is_named(tmp_path, monkeypatch):
  class FullDisk:
    def __init__(self, path, options):
      pass

    def write(self, example):
      raise RuntimeError("write() failed: No space left on device; writing x")

  monkeypatch.setattr(write, "ArrayRecordWriter", FullDisk)
  shard = write._Shard(tmp_path / "a.array_record", "train", [Entry(0, "x", __file__)])
  with pytest.raises(UserError, match=r"cannot write .*a\.array_record \(.*No space left"):
    write._write(shard)


PREPARE = """
import sys
from pathlib import Path

from gfnet_jax.command_line import run
from gfnet_jax.data.prepare.archives import Entry
from gfnet_jax.data.prepare.write import prepare

def main(arguments):
  directory, *paths = arguments
  entries = [Entry(0, f"{i}.jpg", path) for i, path in enumerate(paths)]
  prepare(Path(directory), "pictures", "1.0.0", ["a"], {"train": entries}, processes=2,
          images_per_shard=1)

if __name__ == "__main__":
  sys.exit(run(main))
"""


@pytest.fixture
def start_prepare(tmp_path):
  """Starts a process that writes a shard for each of some files into tmp_path/set."""
  script = tmp_path / "prepare.py"
  script.write_text(PREPARE)
  started = []

  def start(paths):
    command = [sys.executable, script, tmp_path / "set", *paths]
    process = subprocess.Popen(
      list(map(str, command)),
      env=os.environ | {"PYTHONPATH": str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    with process:
      process.kill()


@pytest.mark.slow
def test_ctrl_c_ends_it_with_the_shards_in_hand(tmp_path, start_prepare):
  pipes = [tmp_path / "pipe0", tmp_path / "pipe1"]
  for pipe in pipes:
    os.mkfifo(pipe)
  image = tmp_path / "image"
  image.write_bytes(b"jpeg")
  process = start_prepare([*pipes, *[image] * 20])
  opened = [pipe.open("wb") for pipe in pipes]  # returns as soon as the shards are in hand
  process.send_signal(signal.SIGINT)
  for line in iter(process.stderr.readline, ""):
    if "finishing the shards in hand" in line:
      break
  for pipe in opened:
    with pipe:
      pipe.write(b"jpeg")
  _, error = process.communicate(timeout=HANGS)
  assert process.returncode == 130
  assert error.splitlines()[-1] == "interrupted"
  assert "Traceback" not in error
  assert len(list((tmp_path / "set").glob("pictures-*"))) == 2
  assert not (tmp_path / "set/dataset_info.json").exists()

  for pipe in pipes:  # the same command continues, to the same bytes as without interruption
    pipe.unlink()
    pipe.write_bytes(b"jpeg")
  again = start_prepare([*pipes, *[image] * 20])
  output, error = again.communicate(timeout=HANGS)
  assert again.returncode == 0, error
  assert "Resuming: 2 of 22 shards are written already" in output
  found = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
  for path in (tmp_path / "set").iterdir():
    path.unlink()
  once = start_prepare([*pipes, *[image] * 20])
  once.communicate(timeout=HANGS)
  assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == found


@pytest.mark.slow
def test_an_error_ends_it_with_the_shards_in_hand(tmp_path, start_prepare):
  image = tmp_path / "image"
  image.write_bytes(b"jpeg")
  process = start_prepare([tmp_path / "absent", *[image] * 50])
  _, error = process.communicate(timeout=HANGS)
  assert process.returncode == 2
  assert "absent: No such file or directory; fix that and run again" in error.splitlines()[-1]
  # Of the other process: what it has done until the error arrives, which is not all.
  assert len(list((tmp_path / "set").glob("pictures-*"))) < 50


@pytest.mark.slow
def test_a_name_that_tfds_knows_is_opened_by_it(tmp_path, in_process):
  for name in range(10):  # the classes of MNIST
    (tmp_path / f"pictures/train/{name}").mkdir(parents=True)
    (tmp_path / f"pictures/train/{name}/x.png").write_bytes(f"image {name}".encode())
  code, output, error = in_process(
    *("tools/prepare_tfds.py", tmp_path / "pictures", "--output", tmp_path / "out"),
    *("--name", "mnist", "--processes", "1"),
  )
  assert code == 0, error
  assert output.splitlines()[-1] == f"Done: {tmp_path / 'out/mnist/3.0.1'}"
  data = ml_collections.ConfigDict(dict(name="mnist", data_dir=str(tmp_path / "out")))
  source = open_source(data, "train")
  assert source.class_names == list("0123456789")
  assert [source[i][:2] for i in range(10)] == [(f"image {i}".encode(), i) for i in range(10)]
