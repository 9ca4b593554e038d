"""Files of predicted masks: a PNG for each image, whose values are classes and shown in colours."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gfnet_jax.errors import UserError
from gfnet_jax.files import open_atomically
from gfnet_jax.inference.coloured_masks import coloured
from gfnet_jax.text import printable


def mask_paths(images: Sequence[Path], directory: Path) -> list[Path]:
  """Where the mask of each image goes: DIRECTORY/NAME.png.

  Raises:
    UserError: if two of them would be the same file, or one would replace its image.
  """
  targets, seen = [directory / f"{image.stem}.png" for image in images], {}
  for image, target in zip(images, targets, strict=True):
    if (other := seen.setdefault(target, image)) != image:
      raise UserError(
        f"the masks of {printable(other)} and {printable(image)} would both be "
        f"{printable(target)}; segment them one after the other, each into a folder of its own"
      )
    if target.absolute() == image.absolute():
      raise UserError(
        f"the mask of {printable(image)} would replace it; name another folder for --segment"
      )
  return targets


def write_mask(path: Path, labels: np.ndarray) -> None:
  """Writes a mask, (height, width), uint8, as `coloured` shows it.

  Raises:
    UserError: if it cannot be written.
  """
  try:
    with open_atomically(path) as file:
      coloured(labels).save(file, "PNG")
  except OSError as error:
    raise UserError(f"cannot write {printable(path)} ({error.strerror})") from error


def shares(labels: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, float]]:
  """The names of the classes in a mask, and their shares of its pixels, the largest first."""
  values, counts = np.unique(labels, return_counts=True)
  order = np.argsort(-counts, kind="stable")
  return [(class_names[values[i]], float(counts[i] / labels.size)) for i in order]
