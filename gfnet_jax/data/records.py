"""What a source of images is, for those who write one and those who read it."""

from typing import NamedTuple, Protocol


class Record(NamedTuple):
  """One stored image: the bytes of its file, its class and what to call it in messages."""

  image: bytes
  label: int
  name: str


class Source(Protocol):
  """A split of a data set, indexed at random; picklable, and safe for several threads.

  Raises BadRecordError for a record that cannot be read.
  """

  class_names: list[str]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...


class BadRecordError(ValueError):
  """A stored record that is missing, damaged or fails its checksum."""
