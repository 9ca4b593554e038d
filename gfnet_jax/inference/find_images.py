"""Image files by what a user types: files, folders, patterns."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from gfnet_jax.buckets import is_in_store
from gfnet_jax.data.decode import image_suffixes
from gfnet_jax.data.sources.listing import is_left_out
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable


def find_images(names: Iterable[str]) -> list[Path | UserError]:
  """The images that each name stands for; in place of a name that stands for none, what is wrong.

  Args:
    names: a file, whatever its name ends with; a folder, for the image files anywhere below
      it, sorted, but for those that begin with a dot and folders of the system's; or, where
      there is neither, a pattern such as "holidays/**/*.jpg", for the images that match.
  """
  images = []
  for name in names:
    found, reason = [], ""
    try:
      found = _find(name)
    except (OSError, ValueError) as error:
      reason = f" ({getattr(error, 'strerror', None) or error})"
    shown = printable(name, 1000) or "''"
    if is_in_store(name):
      images.append(UserError(f"{shown} is in a store, expected images on a disk; copy them"))
      continue
    images += found or [
      UserError(
        f"no images in {shown}{reason}, expected an image file, a folder with some or a pattern "
        "that some match; correct the name"
      )
    ]
  return images


def _find(name: str) -> list[Path]:
  if not name:  # which Path takes for the working directory
    raise ValueError("an empty name")
  if "\0" in name:  # for which versions of Python have other words
    raise ValueError("a zero byte")
  if glob.has_magic(name) and not os.path.lexists(name):
    matches = map(Path, sorted(glob.glob(name, recursive=True)))  # noqa: PTH207 (of any path)
    images = (image for match in matches for image in _images_in(match))
    return list(dict.fromkeys(images))  # ** matches a folder and what is in it
  path = Path(name)
  path.stat()
  return _images_in(path) if path.is_dir() else [path]


def _images_in(path: Path) -> list[Path]:
  """The image files among a path and those below it, sorted."""
  suffixes = image_suffixes()
  return sorted(
    file
    for file in (path.rglob("*") if path.is_dir() else [path])
    if file.suffix.lower() in suffixes
    and not any(map(is_left_out, file.relative_to(path).parts))
    and file.is_file()
  )
