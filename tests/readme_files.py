"""What somebody who follows README.md has, but small: a clone, photos, weights and data sets."""

import io
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, random_model
from photo_sets import draw_photo, write_photos
from tensorflow_datasets.core import constants

import gfnet_jax
from gfnet_jax.data.imagenet import subset, wnids
from gfnet_jax.data.prepare import archives, splits, write
from gfnet_jax.models.variants import VARIANTS
from gfnet_jax.weights.download import CACHE_DIRECTORY, OFFICIAL_ADDRESSES, _cached_path
from gfnet_jax.weights.files import write_state_dict

NETWORK = "gfnet-xs"
REPOSITORY = (
  *("README.md", "pyproject.toml", "requirements.txt", "requirements-test.txt"),
  *("configs", "docs", "gfnet_jax", "tests", "tools"),
  *("train.py", "eval.py", "convert_torch_weights.py"),
)


def make_clone(clone: Path) -> Path:
  """Links to what the repository holds; nothing of its user's, which the commands would change."""
  clone.mkdir()
  for name in REPOSITORY:
    (clone / name).symlink_to(ROOT / name)
  return clone


def move_home(home: Path, patch: pytest.MonkeyPatch) -> None:
  """An empty home directory, with caches and TFDS's data sets in it as for a user."""
  home.mkdir()
  patch.setenv("HOME", str(home))
  for name in ("XDG_CACHE_HOME", "TFDS_DATA_DIR"):
    patch.delenv(name, raising=False)
  patch.setattr(constants, "DATA_DIR", str(home / "tensorflow_datasets"))  # read at its import


def write_what_users_have(clone: Path, home: Path, patch: pytest.MonkeyPatch) -> None:
  """Everything that README.md takes for granted, in the clone and the (moved) home directory."""
  settings = VARIANTS[NETWORK][1]
  for name, value in dict(embed_dim=64, depth=2).items():  # of 384 and 12: else minutes longer
    patch.setitem(settings, name, value)
  write_photos(clone / "photos", 24)
  image = jpeg()
  for name in ("new.jpg", "photo.jpg"):
    (clone / name).write_bytes(image)
  write_official_weights(clone / f"{NETWORK}.pth")
  write_folders(clone / "path/to/imagenet/val", wnids()[:3], image)
  write_folders(clone / "DIR/imagenet-a", subset("imagenet_a")[:2], image)
  write_folders(clone / "DIR/sketch", wnids()[:2], image)
  write_imagenet(home / "imagenet", image, patch)
  write_cifar10(home / "tensorflow_datasets", image)


def jpeg() -> bytes:
  file = io.BytesIO()
  draw_photo("circle", (64, 48), np.random.default_rng(0)).save(file, "JPEG")
  return file.getvalue()


def write_official_weights(path: Path) -> None:
  """Random weights, in a file and as if they had been downloaded already."""
  model = random_model(lambda: gfnet_jax.create_model(NETWORK), scale=0.02)
  write_state_dict(path, gfnet_jax.to_torch_state_dict(model))
  downloaded = _cached_path(OFFICIAL_ADDRESSES[NETWORK], CACHE_DIRECTORY.expanduser())
  downloaded.parent.mkdir(parents=True)
  shutil.copy(path, downloaded)


def write_folders(root: Path, classes: Sequence[str], image: bytes) -> None:
  """An image of each class in a folder of its own."""
  for name in classes:
    (root / name).mkdir(parents=True)
    (root / name / "0.JPEG").write_bytes(image)


def write_imagenet(root: Path, image: bytes, patch: pytest.MonkeyPatch) -> None:
  """An image of every class for training and one for validation, in folders and in archives."""
  classes = wnids()
  for folder in ("train", "val"):
    write_folders(root / folder, classes, image)
  inner = {f"{name}.tar": tar({f"{name}_0.JPEG": image}) for name in classes}
  (root / archives.TRAIN_TAR).write_bytes(tar(inner))
  names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 1 + len(classes))]
  (root / archives.VALIDATION_TAR).write_bytes(tar(dict.fromkeys(names, image)))
  patch.setattr(splits, "IMAGENET_IMAGES", {"train": len(classes), "validation": len(classes)})
  patch.setattr(archives, "_imagenet_list", lambda name: classes)


def tar(files: Mapping[str, bytes]) -> bytes:
  stream = io.BytesIO()
  with tarfile.open(fileobj=stream, mode="w") as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return stream.getvalue()


def write_cifar10(data_dir: Path, image: bytes) -> None:
  """32 images for training and 16 for testing, of two classes each."""
  name = "cifar10"
  version, classes = splits.find_registered(name)
  entries = {}
  for split, count in (("train", 16), ("test", 8)):
    folder = data_dir.parent / name / split
    write_folders(folder, classes[:2], image)
    paths = [folder / label / f"{i}.JPEG" for label in classes[:2] for i in range(count)]
    for path in paths:
      path.write_bytes(image)
    entries[split] = archives.list_folder(folder, classes)[1]
  with pytest.MonkeyPatch.context() as patch:  # as few images need no processes
    patch.setattr(write, "_in_parallel", lambda work, shards, *_: [*map(work, shards)])
    write.prepare(data_dir / name / version, name, version, classes, entries, processes=1)
