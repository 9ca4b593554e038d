"""Lists the images of a data set that is to be prepared: image files, or members of tar files.

ImageNet's original archives: ILSVRC2012_img_train.tar holds one tar file per class,
ILSVRC2012_img_val.tar only the images. Their classes come from a list in TFDS, in the
order of the images' names.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from gfnet_jax.data.sources.listing import describe, list_images
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
MAX_HEADER = 2**20  # bytes, of names longer than usual, and of zeros at the end


class Entry(NamedTuple):
  """One image, stored in `size` bytes of a file from `offset` on; size None: in all of them."""

  label: int
  name: str
  path: str
  offset: int = 0
  size: int | None = None

  def read(self) -> bytes:
    """Reads the image file's bytes."""
    with Path(self.path).open("rb", buffering=0) as file:
      if self.size is None:
        return file.read()
      data = os.pread(file.fileno(), self.size, self.offset)
    if len(data) != self.size:
      raise UserError(f"{self.path} ends within {printable(self.name)}; download the archive again")
    return data


def imagenet_classes() -> list[str]:
  """ImageNet's 1000 classes as WordNet ids, in the order of their labels."""
  return _imagenet_list("labels.txt")


def list_folder(directory: Path, classes: list[str] | None = None) -> tuple[list[str], list[Entry]]:
  """The classes of a split and its images, in the order of `FolderSource`.

  Args:
    directory: holds one folder per class.
    classes: of the data set, if they are known beforehand.

  Returns:
    The classes, and the images class by class.

  Raises:
    UserError: if a folder is not named after a class, or holds no images.
  """
  found = list_images(directory)
  for line in describe(directory, found):
    print(line)
  names = [os.fsdecode(name) for name in found["classes"].tolist()]
  classes = classes or names
  labels = {name: label for label, name in enumerate(classes)}
  if unknown := [name for name in names if name not in labels]:
    raise UserError(
      f"{directory} has a folder {printable(unknown[0])}, which is not one of the data set's "
      f"{len(classes)} classes; remove it or choose another --name"
    )
  entries = []
  for path, label in zip(found["paths"].tolist(), found["labels"].tolist(), strict=True):
    path = directory / os.fsdecode(path)
    entries.append(Entry(labels[names[label]], path.name, str(path)))
  return classes, entries


def list_train_tar(path: Path) -> list[Entry]:
  """ImageNet's training images, in the order of the extracted folders.

  Raises:
    UserError: if the archive is damaged, or holds something else.
  """
  labels = {name: label for label, name in enumerate(imagenet_classes())}
  entries = []
  for archive in _members(path, 0):
    label = labels.get(archive.name.removesuffix(".tar"))
    if label is None:
      raise UserError(
        f"{path} holds {printable(archive.name)}, expected one tar file per class of ImageNet"
      )
    prefix = f"{archive.name.removesuffix('.tar')}_"
    for image in _members(path, archive.offset_data, archive.offset_data + archive.size):
      if not image.name.startswith(prefix):
        raise UserError(
          f"{path} holds {printable(image.name)} in {archive.name}, expected {prefix}...; download "
          "it again"
        )
      entries.append(Entry(label, image.name, str(path), image.offset_data, image.size))
  return sorted(entries)


def list_validation_tar(path: Path) -> list[Entry]:
  """ImageNet's validation images, in the order of folders by class.

  Raises:
    UserError: if the archive is damaged, or holds another number of images.
  """
  labels = {name: label for label, name in enumerate(imagenet_classes())}
  images = sorted(_members(path, 0), key=lambda member: member.name)
  classes = _imagenet_list("validation_labels.txt")
  if len(images) != len(classes):
    raise UserError(
      f"{path} holds {len(images)} images, expected {len(classes)}; download it again"
    )
  for i, image in enumerate(images, 1):
    if image.name != f"ILSVRC2012_val_{i:08d}.JPEG":
      raise UserError(
        f"{path} holds {printable(image.name)}, expected ILSVRC2012_val_{i:08d}.JPEG in its place; "
        "download it again"
      )
  return sorted(
    Entry(labels[name], image.name, str(path), image.offset_data, image.size)
    for image, name in zip(images, classes, strict=True)
  )


class _HeaderReader(io.BufferedReader):
  """A file of which headers are read, but not what claims to be one of gigabytes."""

  def read(self, size: int | None = -1) -> bytes:
    if size is None or not 0 <= size <= MAX_HEADER:
      raise tarfile.ReadError(f"a header of {size} bytes")
    return super().read(size)


def _members(path: Path, start: int, end: int | None = None) -> Iterator[tarfile.TarInfo]:
  """The files in the tar archive from `start` to `end` bytes of a file; offsets count from 0.

  Raises:
    UserError: if it is damaged or cut off, be it between two files.
  """
  try:
    with _HeaderReader(io.FileIO(path)) as file:
      end = path.stat().st_size if end is None else end
      file.seek(start)
      with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
          if member.size < 0 or member.offset_data + member.size > end or member.issparse():
            raise tarfile.ReadError(f"{member.name} does not fit")
          if member.isfile():
            yield member
        # tarfile takes a damaged header for the end, which is zeros from a block on.
        file.seek(archive.offset)
        left = end - archive.offset
        if left < tarfile.BLOCKSIZE or file.read(left) != bytes(left):
          raise tarfile.ReadError(f"no end at byte {archive.offset}")
  # ValueError and RecursionError: extended headers of nonsense, or in a long row.
  except (OSError, tarfile.TarError, ValueError, RecursionError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"{path} cannot be read as a tar file: {printable(error)}; download it again"
    ) from error


def _imagenet_list(name: str) -> list[str]:
  return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()
