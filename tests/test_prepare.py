"""tools/prepare_tfds.py: folders and ImageNet's tar files, kills and damage."""

import io
import os
import signal
import subprocess
import tarfile
import time

import ml_collections
import pytest
from helpers import HANGS, ROOT, script_command
from image_sets import CLASSES, write_folder

from gfnet_jax.data.prepare import archives, write
from gfnet_jax.data.sources.open import open_source
from gfnet_jax.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def records(split, **fields):
  """(image, label) of all records."""
  source = open_source(ml_collections.ConfigDict(dict(data_dir="") | fields), split)
  return [source[i][:2] for i in range(len(source))]


def test_folders_become_a_data_set_with_the_same_images_in_the_same_order(tmp_path, script):
  for split, count in (("train", 30), ("val", 10)):
    write_folder(tmp_path / "pictures", count, split)
  output = tmp_path / "tfds"
  command = ["tools/prepare_tfds.py", tmp_path / "pictures", "--output", output]
  process = script(*command, "--name", "pictures", "--processes", "1")
  assert process.returncode == 0, process.stderr
  for folder, split in (("train", "train"), ("val", "validation")):
    found = records(split, name="pictures", data_dir=str(output))
    assert found == records(folder, name=str(tmp_path / "pictures"), source="folder")
  assert sorted(path.name for path in (output / "pictures" / "1.0.0").iterdir()) == [
    "dataset_info.json",
    "features.json",
    "label.labels.txt",
    "pictures-train.array_record-00000-of-00001",
    "pictures-validation.array_record-00000-of-00001",
  ]
  again = script(*command, "--name", "pictures")
  assert again.returncode == 2
  assert "is complete; remove it to prepare it again" in again.stderr
  unnamed = script(*command)
  assert unnamed.returncode == 2
  assert f"has a folder {CLASSES[0]}, which is not one of the data set's 1000 classes" in (
    unnamed.stderr
  )


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
  member = tarfile.TarInfo(name)
  member.size = len(data)
  archive.addfile(member, io.BytesIO(data))


def test_tar_files_of_imagenet(tmp_path, monkeypatch):
  classes = archives.imagenet_classes()
  assert len(classes) == 1000
  assert classes[:2] == ["n01440764", "n01443537"]
  with tarfile.open(tmp_path / archives.TRAIN_TAR, "w") as outer:
    for label in (999, 3):  # not in order
      inner = io.BytesIO()
      with tarfile.open(fileobj=inner, mode="w") as images:
        for i in (2, 1):
          add(images, f"{classes[label]}_{i}.JPEG", f"image {label} {i}".encode())
      add(outer, f"{classes[label]}.tar", inner.getvalue())
  names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 4)]
  with tarfile.open(tmp_path / archives.VALIDATION_TAR, "w") as images:
    for name in names[::-1]:
      add(images, name, name.encode())

  with pytest.raises(UserError, match="holds 3 images, expected 50000"):
    archives.list_validation_tar(tmp_path / archives.VALIDATION_TAR)
  original = archives._imagenet_list
  monkeypatch.setattr(
    archives,
    "_imagenet_list",
    lambda name: original(name)[:3] if name == "validation_labels.txt" else original(name),
  )
  splits = {
    "train": archives.list_train_tar(tmp_path / archives.TRAIN_TAR),
    "validation": archives.list_validation_tar(tmp_path / archives.VALIDATION_TAR),
  }
  directory = tmp_path / "tfds" / "imagenet2012" / "5.1.0"
  write.prepare(directory, "imagenet2012", "5.1.0", classes, splits, processes=1)
  fields = dict(name="imagenet2012", data_dir=str(tmp_path / "tfds"))
  assert records("train", **fields) == [
    (f"image {label} {i}".encode(), label) for label in (3, 999) for i in (1, 2)
  ]
  # The first three of TFDS's list: n01751748, n09193705, n02105855.
  assert records("validation", **fields) == [
    (names[0].encode(), classes.index("n01751748")),
    (names[2].encode(), classes.index("n02105855")),
    (names[1].encode(), classes.index("n09193705")),
  ]


def test_what_is_no_tar_file_is_named(tmp_path):
  path = tmp_path / archives.TRAIN_TAR
  path.write_bytes(b"<html>not found</html>" * 100)
  with pytest.raises(UserError, match=r"img_train\.tar cannot be read as a tar file"):
    archives.list_train_tar(path)


@pytest.fixture
def entries(tmp_path):
  write_folder(tmp_path / "pictures", 60)
  return archives.list_folder(tmp_path / "pictures" / "train")


@pytest.fixture
def in_this_process(monkeypatch):
  """No processes write and verify the shards, each of which would first import for a second."""

  def one_by_one(work, shards, processes, name):
    for shard in shards:
      work(shard)

  monkeypatch.setattr(write, "_in_parallel", one_by_one)


def run_prepare(directory, entries, processes=1):
  classes, images = entries
  write.prepare(
    directory,
    "pictures",
    "1.0.0",
    classes,
    {"train": images},
    processes=processes,
    images_per_shard=16,
  )


@pytest.mark.usefixtures("in_this_process")
def test_a_later_run_keeps_what_is_whole(tmp_path, entries, capsys):
  directory = tmp_path / "set"
  shards = list(write._shards(directory, "pictures", "train", entries[1], 16))
  directory.mkdir()
  for shard in shards[:3]:
    write._write(shard)
  kept = [shard.path.stat().st_mtime_ns for shard in shards[:3]]
  shards[1].path.unlink()
  (directory / f".{shards[3].path.name}.tmp").write_bytes(b"half a shard")
  run_prepare(directory, entries)
  assert "Resuming: 2 of 4 shards are written already" in capsys.readouterr().out
  found = [shard.path.stat().st_mtime_ns for shard in shards[:3]]
  assert (found[0], found[2]) == (kept[0], kept[2])
  expected = records("train", name=str(tmp_path / "pictures"), source="folder")
  assert records("train", name=str(directory)) == expected
  assert not list(directory.glob(".*"))


@pytest.mark.usefixtures("in_this_process")
def test_a_shard_of_other_images_is_written_again(tmp_path, entries):
  directory = tmp_path / "set"
  directory.mkdir()
  for shard in write._shards(directory, "pictures", "train", entries[1][::-1], 16):
    write._write(shard)
  run_prepare(directory, entries)
  expected = records("train", name=str(tmp_path / "pictures"), source="folder")
  assert records("train", name=str(directory)) == expected


def test_damage_is_found_at_the_end(tmp_path, entries):
  directory = tmp_path / "set"
  directory.mkdir()
  shards = list(write._shards(directory, "pictures", "train", entries[1], 16))
  for shard in shards:
    write._write(shard)
  data = bytearray(shards[2].path.read_bytes())
  data[len(data) // 2] ^= 1
  shards[2].path.write_bytes(data)
  with pytest.raises(UserError, match=r"00002-of-00004 does not read back as it was written"):
    run_prepare(directory, entries)
  assert not (directory / "dataset_info.json").exists()
  run_prepare(directory, entries)
  assert len(records("train", name=str(directory))) == 60


def test_killed_at_any_time_it_continues(tmp_path):
  write_folder(tmp_path / "pictures", 3000)
  output = tmp_path / "tfds"
  command = script_command(
    "tools/prepare_tfds.py",
    *(tmp_path / "pictures", "--output", output, "--name", "pictures", "--processes", "1"),
  )
  killed = subprocess.Popen(
    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd=ROOT
  )
  directory = output / "pictures" / "1.0.0"
  while not list(directory.glob(".*.json")) and killed.poll() is None:
    time.sleep(0.01)
  os.killpg(killed.pid, signal.SIGKILL)
  killed.wait()
  assert not (directory / "dataset_info.json").exists()
  again = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, cwd=ROOT)
  assert again.returncode == 0, again.stderr
  assert "Resuming: 1 of 2 shards are written already" in again.stdout
  expected = records("train", name=str(tmp_path / "pictures"), source="folder")
  assert records("train", name="pictures", data_dir=str(output)) == expected
