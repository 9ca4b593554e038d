"""Images with masks in the folders of ADE20K: images/SPLIT/*.jpg and annotations/SPLIT/*.png."""

import os
from pathlib import Path

import ml_collections

from gfnet_jax.data.decode import BadImageError, image_suffixes, open_image
from gfnet_jax.data.sources.folder import read_file
from gfnet_jax.data.sources.listing import is_left_out
from gfnet_jax.data.sources.records import MaskedRecord, required_name
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

MOST_CLASSES = 254  # a value of a byte each; 255 is no class, and 0 may be none
NAMES = ("classes.txt", "objectInfo150.txt")  # the first that is there


class MaskSource:
  """Image files in ROOT/images/SPLIT, each with a mask of its name in ROOT/annotations/SPLIT.

  The names of the classes stand in ROOT/classes.txt, one a line, or in ADE20K's own
  objectInfo150.txt.

  Args:
    root: directory of the data set.
    split: name of the folders below images and annotations.
    reduce_zero_label: whether the value 0 in a mask is no class, so that classes begin at 1.

  Attributes:
    class_names: in the order of their values.
    first_value: 1 with reduce_zero_label, else 0.

  Raises:
    UserError: if a folder, a mask or the names are missing.
  """

  def __init__(self, root: Path, split: str, *, reduce_zero_label: bool = False):
    self._images, self._masks = root / "images" / split, root / "annotations" / split
    self.class_names = read_class_names(root)
    self.first_value = int(reduce_zero_label)
    self._names = _files(self._images, root, image_suffixes())
    masks = {Path(name).stem: name for name in _files(self._masks, root, {".png"})}
    for name in self._names:
      if Path(name).stem not in masks:
        raise UserError(
          f"{printable(self._images / name)} has no mask, expected "
          f"{printable(self._masks / Path(name).stem)}.png; add it or remove the image"
        )
    self._mask_names = [masks[Path(name).stem] for name in self._names]

  def __len__(self) -> int:
    return len(self._names)

  def record_names(self) -> list[bytes]:
    """The names of the image files; see `fingerprint`."""
    return [os.fsencode(name) for name in self._names]

  def __getitem__(self, index: int) -> MaskedRecord:
    path, mask = self._images / self._names[index], self._masks / self._mask_names[index]
    return MaskedRecord(read_file(path), read_file(mask), str(path))

  def sizes(self) -> list[tuple[int, int]]:
    """(height, width) of every image, in pixels, from the headers of the files.

    Raises:
      UserError: for an image that cannot be read.
    """
    return [_size(self._images / name) for name in self._names]


def open_masks(data: ml_collections.ConfigDict, split: str) -> MaskSource:
  """The source 'masks': images and masks below `data.name`; uses data.reduce_zero_label as well."""
  root = Path(os.path.expanduser(required_name(data)))  # noqa: PTH111 (without a home, too)
  if not os.path.isdir(root):  # noqa: PTH112 (False for a name too long as well)
    raise UserError(
      f"directory {root} not found, expected one with images/ and annotations/; set data.name to "
      "it (eval.py: --data)"
    )
  return MaskSource(root, split, reduce_zero_label=bool(data.get("reduce_zero_label")))


def read_class_names(root: Path) -> list[str]:
  """The names of the classes of a data set, in the order of their values.

  Raises:
    UserError: if there is no file of them, or it does not hold 1 to MOST_CLASSES different ones.
  """
  path = next((root / name for name in NAMES if (root / name).is_file()), None)
  if path is None:
    raise UserError(
      f"{root} holds neither {' nor '.join(NAMES)}, expected the name of every class, one a line, "
      f"in the order of their values in the masks; write {root / NAMES[0]}"
    )
  try:
    lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"cannot read {path} ({reason}); expected one class name per line") from error
  names = [line for line in lines if line]
  if path.name == NAMES[1]:  # a table with a heading; the name is the last column
    names = [line.rpartition("\t")[2].strip() for line in names[1:]]
  if not 1 <= len(names) <= MOST_CLASSES or len(set(names)) < len(names):
    raise UserError(
      f"{path} holds {len(names)} names, {len(set(names))} of them different, expected 1 to "
      f"{MOST_CLASSES} different ones"
    )
  return names


def _files(directory: Path, root: Path, suffixes: set[str]) -> list[str]:
  """The sorted names of the files of these kinds in a directory."""
  try:
    with os.scandir(directory) as entries:
      names = [entry.name for entry in entries if not is_left_out(entry.name)]
  except OSError as error:
    raise UserError(
      f"cannot read {printable(directory)} ({error.strerror}); expected images/SPLIT and "
      f"annotations/SPLIT below {printable(root)}; set data.name and the split "
      "(data.train_split, data.eval_split; eval.py --split)"
    ) from error
  return sorted(name for name in names if Path(name).suffix.lower() in suffixes)


def _size(path: Path) -> tuple[int, int]:
  try:
    with path.open("rb") as file:
      image = open_image(file)
      return image.height, image.width
  except (OSError, BadImageError) as error:
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"{printable(path)} is {reason}; repair or remove it") from error
