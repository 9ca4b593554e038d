"""A grid of tokens as a flag's value."""

import argparse
import re

from gfnet_jax.text import printable


def token_grid(text: str) -> tuple[int, int, int]:
  """(height, width, channels) of "14x14x384".

  Raises:
    argparse.ArgumentTypeError: for anything else.
  """
  found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
  if not found:
    raise argparse.ArgumentTypeError(
      f"{printable(text)} found, expected height, width and channels such as 14x14x384"
    )
  return tuple(map(int, found.groups()))
