"""ImageNet-1k: its classes, as WordNet ids (wnids) in the order of the labels with their names,
and the statistics of its pixels.
"""

import functools
from pathlib import Path

FILE = Path(__file__).parent / "imagenet_classes.txt"  # says where the names come from
SUBSETS = Path(__file__).parent / "imagenet_subsets.txt"
# Of red, green and blue in [0, 1]; of timm, as the official datasets.py takes them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@functools.cache
def names() -> dict[str, str]:
  """The 1000 names by wnid, such as "tench" of "n01440764", in the order of the labels."""
  lines = FILE.read_text("utf-8").splitlines()
  return dict(line.split("\t") for line in lines if not line.startswith("#"))


def wnids() -> list[str]:
  """The 1000 wnids in the order of the labels."""
  return list(names())


@functools.cache
def subset(name: str) -> tuple[str, ...]:
  """The wnids of the 200 classes of imagenet_a or imagenet_r, in the order of the labels."""
  lines = SUBSETS.read_text("utf-8").splitlines()
  labels = dict(line.split("\t") for line in lines if not line.startswith("#"))[name]
  return tuple(wnids()[int(label)] for label in labels.split())
