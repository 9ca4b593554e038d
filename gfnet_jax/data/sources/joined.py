"""Several sources with the same classes as one."""

import bisect
import itertools
from collections.abc import Iterator, Mapping

from gfnet_jax.data.sources.records import Record, Source


class Joined:
  """The records of several sources, one source after the other.

  It has the method `record_names` if all of them have it.

  Args:
    sources: by the name of the part, with the same class names in the same order.

  Attributes:
    class_names: in the order of the labels.
    parts: the number of images of every part, by its name.
  """

  def __init__(self, sources: Mapping[str, Source]):
    self._sources = list(sources.values())
    self.class_names = self._sources[0].class_names
    self.parts = {name: len(source) for name, source in sources.items()}
    self._ends = list(itertools.accumulate(self.parts.values()))
    if all(hasattr(source, "record_names") for source in self._sources):
      self.record_names = self._record_names

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Record:
    part = bisect.bisect_right(self._ends, index)
    return self._sources[part][index - (self._ends[part - 1] if part else 0)]

  def _record_names(self) -> Iterator[bytes]:
    """Those of the parts, each behind the name of its part; see `fingerprint`."""
    for name, source in zip(self.parts, self._sources, strict=True):
      yield name.encode()
      yield from source.record_names()
