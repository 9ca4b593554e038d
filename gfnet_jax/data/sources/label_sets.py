"""ReaL, the reassessed labels of ImageNet's validation images (arXiv:2006.07159).

An image may show several classes, or none of the 1000, and then does not count. The authors' file
real.json is a list of the 50,000 images of the validation set in the order of their names, each a
list of labels.
"""

import json
import re
from pathlib import Path

from gfnet_jax.data.sources.records import Record, Source
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

LARGEST_FILE = 2**25  # bytes; the authors' has less than one MiB
NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.[^.]+")


class WithLabelSets:
  """A source whose records tell all classes that an image shows, by the number in its name.

  It has the method `record_names` of the source.

  Args:
    source: validation images of ImageNet-1k with all 1000 classes; the records' names end with
      ILSVRC2012_val_ and eight digits, from 00000001, and an extension.
    path: of the file.

  Raises:
    UserError: if the file cannot be read.
  """

  label_sets = True

  def __init__(self, source: Source, path: Path):
    self._source, self.class_names = source, source.class_names
    self._path, self._sets = path, read_label_sets(path)
    self.record_names = source.record_names

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Record:
    record = self._source[index]
    number = NUMBER.fullmatch(Path(record.name).name)
    if number is None or not 1 <= int(number[1]) <= len(self._sets):
      raise UserError(
        f"{record.name} is none of the {len(self._sets)} images of {self._path}, expected a name "
        f"such as ILSVRC2012_val_00000001.JPEG; remove it, or give the images their names back"
      )
    return record._replace(shown=self._sets[int(number[1]) - 1])


def read_label_sets(path: Path) -> list[tuple[int, ...]]:
  """The labels of every image.

  Raises:
    UserError: if the file is not as above.
  """
  try:
    if path.stat().st_size > LARGEST_FILE:
      raise ValueError(f"more than {LARGEST_FILE >> 20} MiB")
    found = json.loads(path.read_bytes())
    sets = [tuple(labels) for labels in found]
    if not all(type(label) is int for labels in sets for label in labels):
      raise ValueError("not all labels are integers")
  except (OSError, ValueError, TypeError, RecursionError) as error:
    raise UserError(
      f"{path} cannot be read ({printable(error)}), expected a list of lists of labels, as of the "
      "authors of ReaL; copy it again"
    ) from error
  return sets
