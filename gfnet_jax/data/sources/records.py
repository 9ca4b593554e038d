"""What a source of images is, for those who write one and those who read it."""

from typing import NamedTuple, Protocol

import ml_collections

from gfnet_jax.errors import UserError


class Record(NamedTuple):
  """One stored image: the bytes of its file, its class and its name in messages.

  Of a source with `label_sets`, also all classes that it shows, which may be none.
  """

  image: bytes
  label: int
  name: str
  shown: tuple[int, ...] = ()


class MaskedRecord(NamedTuple):
  """One stored image with the class of every pixel: the bytes of both files, and its name."""

  image: bytes
  mask: bytes
  name: str


class Source(Protocol):
  """One split of a data set, with random access to its records.

  It must be picklable, for worker processes, and safe for several threads at once.
  `source[index]` raises BadRecordError for a record that cannot be read.

  It may have a method `record_names() -> Iterable[bytes]`: what tells its records from
  those of other data, in their order, on every machine and for every path (`fingerprint`).
  With it a run continues when its data have moved, and refuses other data.

  It may have `label_sets`, which is True if its records tell all classes that an image shows; and
  `parts`, the numbers of its images by the name of the part, if it has several in a row.

  Attributes:
    class_names: of all classes, in the order of the labels 0, 1, ...
  """

  class_names: list[str]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...


class MaskedSource(Protocol):
  """A source whose records are images with masks: a `Source` of `MaskedRecord`, and two more.

  Attributes:
    class_names: of all classes, in the order of their values in a mask.
    first_value: that of the first class. Pixels of a lower value, or of 255, are of no class.
  """

  class_names: list[str]
  first_value: int

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> MaskedRecord: ...

  def sizes(self) -> list[tuple[int, int]]:
    """(height, width) of every image, in pixels; reads no more of them than that takes.

    Raises:
      UserError: for an image that cannot be read.
    """


class BadRecordError(ValueError):
  """A stored record is missing, is damaged or fails its checksum."""


def required_name(data: ml_collections.ConfigDict) -> str:
  """`data.name`; for sources that cannot do without.

  Raises:
    UserError: if it is empty.
  """
  if not data.get("name"):
    raise UserError(
      "data.name is empty, expected a TFDS data set or a directory; set it, for instance by "
      "--config.data.name=DIR"
    )
  return data.name
