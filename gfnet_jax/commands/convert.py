"""Converts official PyTorch weights to a checkpoint, and a checkpoint to PyTorch.

A file of the official repository; the variant is recognised by its tensors:

  gfnet-jax convert gfnet-xs.pth runs/gfnet-xs

The name of a variant stands for its official address; any http(s) address will do:

  gfnet-jax convert gfnet-xs runs/gfnet-xs

For images of another size, or another number of classes, to fine-tune:

  gfnet-jax convert gfnet-xs.pth runs/gfnet-xs-384 --image-size 384
  gfnet-jax convert gfnet-xs.pth runs/gfnet-xs-cars --num-classes 196

Back to PyTorch, for the official code (.safetensors works as well):

  gfnet-jax convert --to-torch runs/digits digits.pth

Files may be training checkpoints or plain state dicts, with or without a head. Nothing in
a file is run, damage is detected, and unless everything fits nothing is written.
"""

import argparse
from pathlib import Path

from gfnet_jax.buckets import as_directory, is_in_store
from gfnet_jax.command_line import ArgumentParser, program
from gfnet_jax.text import printable


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog=program("convert"), description=__doc__)
  parser.add_argument(
    "source",
    help="file (.pth, .safetensors, or the index of several: *.index.json), address or name; with "
    "--to-torch a checkpoint",
  )
  parser.add_argument("destination", help="new directory; with --to-torch a new file")
  parser.add_argument(
    "--to-torch", action="store_true", help="convert a checkpoint to .pth or .safetensors"
  )
  parser.add_argument("--ema", action="store_true", help="take the averaged weights")
  parser.add_argument(
    "--precision",
    choices=["float64"],
    help="keep weights of 64 bits as they are, with JAX_ENABLE_X64=1 (default: float32, or that of "
    "the training run)",
  )
  parser.add_argument("--which", help="with --to-torch: last, best or a step (default: last)")
  _add_flags_of_reading(parser)
  options = vars(parser.parse_args(arguments))
  source, destination = options.pop("source"), options.pop("destination")
  to_torch, which = options.pop("to_torch"), options.pop("which")
  shared = {"ema": options.pop("ema")}
  if precision := options.pop("precision"):
    shared["precision"] = precision
  if to_torch and options:
    flag = {"name": "arch", "in_dim": "in-channels"}.get(min(options), min(options))
    parser.error(f"--to-torch takes no --{flag.replace('_', '-')}")
  if which and not to_torch:
    parser.error("--which needs --to-torch")
  if to_torch and is_in_store(destination):
    parser.error(f"{destination} is in a store; convert to a disk, and copy it from there")

  # Importing jax and the rest takes a second that --help and typing errors need not wait for.
  from gfnet_jax import startup

  startup.check_devices()
  from gfnet_jax.checkpoints.model import saved_class_names
  from gfnet_jax.weights.convert import export_weights, import_weights

  destination = as_directory(destination)
  if to_torch:
    config = export_weights(Path(source), destination, which=which or "last", **shared)
  else:
    config = import_weights(source, destination, **shared, **options)
  described = ", ".join(f"{key} {value}" for key, value in config.items())
  print(f"Wrote {printable(destination, 1000)}: {described}")
  if not to_torch and Path(source).is_file() and saved_class_names(destination):
    print(
      "Its classes are assumed to be ImageNet's, since the file has the name of official weights"
    )


def _add_flags_of_reading(parser: argparse.ArgumentParser) -> None:
  """Those that --to-torch does not take."""
  # Without a default they are absent unless given.
  group = parser.add_argument_group("from PyTorch", argument_default=argparse.SUPPRESS)
  group.add_argument("--arch", dest="name", help="variant, such as gfnet-xs (default: recognised)")
  group.add_argument(
    "--image-size",
    type=_image_size,
    metavar="PIXELS",
    help="side, or HEIGHTxWIDTH, to resize position embedding and filters for",
  )
  group.add_argument(
    "--num-classes",
    type=_classes,
    help="a number other than the file's gets a fresh head, 0 none",
  )
  group.add_argument(
    "--in-channels",
    dest="in_dim",
    type=_positive,
    help="of the images: weights for 3 channels are summed for 1, repeated for more",
  )
  group.add_argument("--allow-nan", action="store_true", help="accept NaN and infinite weights")
  group.add_argument("--sha256", metavar="SUM", help="the sum that the file must have")
  group.add_argument("--cache", type=Path, help="of downloads (default: ~/.cache/gfnet_jax)")


def _image_size(text: str) -> int | tuple[int, int]:
  height, by, width = text.partition("x")
  sides = [_positive(side, limit=4096) for side in ((height, width) if by else (height,))]
  return tuple(sides) if by else sides[0]


def _classes(text: str) -> int:
  return 0 if text == "0" else _positive(text)


def _positive(text: str, limit: int = 100_000) -> int:
  """A number of a size that memory can hold."""
  number = int(text) if text.isdecimal() and len(text) <= 6 else 0
  if not 0 < number <= limit:
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer up to {limit}")
  return number
