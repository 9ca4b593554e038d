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


class Source(Protocol):
  """One split of a data set, with random access to its records.

  It must be picklable, for worker processes, and safe for several threads at once.
  `source[index]` raises BadRecordError for a record that cannot be read.

  It may have a method `record_names() -> Iterable[bytes]`: what tells its records from
  those of other data, in their order, on every machine and for every path (`fingerprint`).
  With it a run goes on when its data have moved, and not on others.

  It may have `label_sets`, which is True if its records tell all classes that an image shows; and
  `parts`, the numbers of its images by the name of the part, if it has several in a row.

  Attributes:
    class_names: of all classes, in the order of the labels 0, 1, ...
  """

  class_names: list[str]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...


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
