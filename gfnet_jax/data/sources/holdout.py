"""Which images of a data set are held out for validation, by what the images are."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

SHARE = 0.2  # of every class


def hold_out(labels: Sequence[int], digests: Sequence[str], share: float = SHARE) -> np.ndarray:
  """Chooses a share of every class, at least one image where it has two different ones of its own.

  The choice depends on the digests alone: it stays when files are renamed, moved or listed in
  another order, and nearly stays when some are added. Identical images stay together; those that
  stand in several classes are not held out, nor are all others of a class.

  Args:
    labels: (images,), the class of each.
    digests: (images,), equal for identical images.
    share: of a class that is held out.

  Returns:
    (images,), bool: True for what is held out.
  """
  classes_of, members = defaultdict(set), defaultdict(lambda: defaultdict(list))
  for index, (label, digest) in enumerate(zip(labels, digests, strict=True)):
    classes_of[digest].add(label)
    members[label][digest].append(index)
  held_out = np.zeros(len(labels), bool)
  for groups in members.values():
    free = [groups[digest] for digest in sorted(groups) if len(classes_of[digest]) == 1]
    if len(free) > 1:
      held_out[_choose(free, share * sum(map(len, groups.values())))] = True
  return held_out


def _choose(groups: list[list[int]], wanted: float) -> list[int]:
  """The first groups of identical images that fit into what is wanted: at least one, not all."""
  left, chosen = max(1, round(wanted)), []
  for group in groups:
    if len(group) <= left:
      chosen.append(group)
      left -= len(group)
  chosen = chosen[: len(groups) - 1] or [min(groups, key=len)]
  return [index for group in chosen for index in group]
