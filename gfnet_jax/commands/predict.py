"""Classifies images with a trained or converted model.

Images, folders of images and quoted patterns; the five most probable classes of each:

  gfnet-jax predict runs/digits digit.png
  gfnet-jax predict gfnet-xs photo.jpg holidays/ "trips/**/*.jpg"

A list of names, one a line, from another program:

  find . -name "*.jpg" | gfnet-jax predict gfnet-xs -
  find . -name "*.jpg" -print0 | gfnet-jax predict gfnet-xs -    # whatever is in the names

For a table or another program, with the probabilities of all classes:

  gfnet-jax predict gfnet-xs holidays/ --csv holidays.csv --json holidays.json

--json alone prints one JSON object per image instead. An image that is missing or cannot be
read is named and left out, and the exit code is 2 at the end.

Classes have the names in the checkpoint, those of ImageNet for the official weights, or those
in a file with one name per line; without any they are shown by index:

  gfnet-jax predict runs/mine photo.jpg --class-names names.txt

A model that gives every pixel a class writes a coloured mask for each image, DIR/photo.png, whose
values are the classes (docs/segmentation.md):

  gfnet-jax predict runs/shapes photo.jpg --segment masks
"""

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gfnet_jax.command_line import ArgumentParser, program
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

if TYPE_CHECKING:
  from gfnet_jax.inference.saved_model import SavedModel

STANDARD_OUTPUT = Path("-")


def main(arguments: list[str]) -> None:
  options = _parse(arguments)
  from gfnet_jax.inference.find_images import find_images

  found = find_images(_names(options.images))
  if len(found) == 1 and isinstance(found[0], UserError):
    raise found[0]
  from gfnet_jax.files import make_directory

  for file in options.files:  # before the work, not after
    make_directory(file.parent)
  if options.segment:
    make_directory(options.segment)
  paths = [one for one in found if not isinstance(one, UserError)]
  for one in found:
    if isinstance(one, UserError):
      _warn(one)
  answer = _segment if options.segment else _predict
  good = answer(paths, options) if paths else 0
  if bad := len(found) - good:
    raise UserError(
      f"{bad} of {len(found)} images cannot be read (see the warnings above); repair or remove them"
    )


def _load(options: argparse.Namespace) -> "SavedModel":
  """The model, with the names of its classes that the flags ask for."""
  names = read_class_names(options.class_names) if options.class_names else None
  from gfnet_jax import startup

  startup.start()
  startup.check_devices()
  import gfnet_jax

  saved = gfnet_jax.load_model(
    options.model, options.which, precision=options.precision, ema=options.ema
  )
  return saved if names is None else name_classes(saved, names, options.class_names)


def _segment(paths: list[Path], options: argparse.Namespace) -> int:
  """Writes the masks of all images that can be read, and shows their classes; returns how many."""
  from gfnet_jax.inference.mask_files import mask_paths, shares, write_mask

  targets = mask_paths(paths, options.segment)
  saved = _load(options)
  from gfnet_jax.inference.segment import check_segments, segment

  check_segments(saved)
  names, clipped, good = saved.class_names, [], 0
  names = names or [str(i) for i in range(saved.config["num_classes"])]
  for path, target in zip(paths, targets, strict=True):
    try:
      labels = segment(saved, path, clipped)
    except UserError as error:
      if len(paths) == 1:
        raise
      _warn(error)
      continue
    write_mask(target, labels)
    good += 1
    print(f"{printable(path, limit=4000)} -> {printable(target, limit=4000)}")
    for name, share in shares(labels, names)[: options.top]:
      print(f"  {share:7.2%}  {printable(name)}", flush=True)
  return good


def _predict(paths: list[Path], options: argparse.Namespace) -> int:
  """Shows or writes the predictions of all images that can be read; returns their number."""
  saved = _load(options)
  from tqdm import tqdm

  from gfnet_jax.inference.prediction_files import csv_file, json_file

  top = saved.config["num_classes"] if options.files else options.top
  predictions = saved.predict_each(paths, top=top, batch_size=options.batch_size)
  show, good = _show(options), 0
  with contextlib.ExitStack() as stack:
    writers = [show] if show else []
    if options.csv:
      writers.append(stack.enter_context(csv_file(options.csv, saved)))
    if options.json in options.files:
      writers.append(stack.enter_context(json_file(options.json, options.top)))
    # What is shown on the terminal itself needs no bar. None: hidden unless on a terminal.
    hidden = bool(show and sys.stdout.isatty()) or None
    bar = tqdm(paths, "predict", unit="img", leave=False, delay=2, disable=hidden)
    for path, best in zip(bar, predictions, strict=True):
      if isinstance(best, UserError):
        if len(paths) == 1:
          raise best
        _warn(best)
        continue
      good += 1
      for write in writers:
        write(path, best)
  for file in options.files:
    print(f"Wrote {printable(file, 1000)}: {good} images")
  return good


def _show(options: argparse.Namespace) -> Callable[[Path, list], None] | None:
  """What prints the predictions of an image, unless they are only written."""
  if options.json == STANDARD_OUTPUT:
    return lambda path, best: print_json(path, best[: options.top])
  return None if options.files else print_table


def _warn(error: UserError) -> None:
  from tqdm import tqdm

  tqdm.write(f"warning: {printable(error, limit=4000)}", file=sys.stderr)
  sys.stderr.flush()


def _parse(arguments: list[str]) -> argparse.Namespace:
  parser = ArgumentParser(prog=program("predict"), description=__doc__)
  parser.add_argument(
    "model", help="work directory of training, a checkpoint, an official file or its name"
  )
  parser.add_argument(
    "images", nargs="+", help="image files, folders, quoted patterns, or - for names on stdin"
  )
  parser.add_argument("--top", type=int, default=5, help="classes per image (default: 5)")
  parser.add_argument(
    "--class-names", type=Path, help="file with one name per line, or imagenet for its 1000"
  )
  parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row per image instead")
  parser.add_argument(
    "--json",
    type=Path,
    nargs="?",
    const=STANDARD_OUTPUT,
    metavar="FILE",
    help="write a .json or .jsonl file instead; without a name print an object per image",
  )
  parser.add_argument(
    "--segment", type=Path, metavar="DIR", help="write the class of every pixel as coloured masks"
  )
  parser.add_argument("--batch-size", type=int, default=32, help="images at once (default: 32)")
  parser.add_argument("--which", default="last", help="last, best or a step (default: last)")
  parser.add_argument("--ema", action="store_true", help="take the averaged weights")
  parser.add_argument(
    "--precision", help="highest, default, bf16 or float64 (default: as in training)"
  )
  options = parser.parse_args(arguments)
  if options.top < 1 or options.batch_size < 1:
    parser.error("--top and --batch-size must be positive")
  if options.segment and (options.csv or options.json):
    parser.error("--segment writes masks, expected no --csv or --json beside it")
  options.files = [
    file for file in (options.csv, options.json) if file not in (None, STANDARD_OUTPUT)
  ]
  for flag, endings in (("csv", (".csv",)), ("json", (".json", ".jsonl"))):
    file = getattr(options, flag)
    # Else an image that follows --json would be replaced.
    if file in options.files and (file.suffix.lower() not in endings or file.is_dir()):
      expected = f"expected a file whose name ends in {' or '.join(endings)}"
      parser.error(f"--{flag} {printable(file)}: {expected}; name the images before --{flag}")
  return options


def _names(arguments: Sequence[str]) -> Iterator[str]:
  """The arguments, with the names on standard input in place of "-".

  Raises:
    UserError: if it holds none: what was to list them has failed, most likely.
  """
  for argument in arguments:
    if argument == "-":
      content = sys.stdin.buffer.read()
      names = content.split(b"\0") if b"\0" in content else content.splitlines()
      if not any(names):
        raise UserError(
          "no images on standard input, expected one name per line, or names that end in a zero "
          "byte; see whether the program that lists them finds any"
        )
      yield from filter(None, map(os.fsdecode, names))
    else:
      yield argument


def read_class_names(path: Path) -> list[str]:
  """The lines of a file, or ImageNet's wnids for the name imagenet where there is no such file.

  Raises:
    UserError: if it cannot be read.
  """
  from gfnet_jax.data import imagenet

  try:
    known = str(path) == "imagenet" and not path.exists()
    return imagenet.wnids() if known else path.read_text("utf-8-sig").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"cannot read {path} ({reason}); expected one class name per line") from error


def name_classes(saved: "SavedModel", names: list[str], path: Path) -> "SavedModel":
  """The model with these names of its classes.

  Raises:
    UserError: if the file that they are from has another number of lines than the model classes.
  """
  if len(names) != (expected := saved.config["num_classes"]):
    raise UserError(f"{path} has {len(names)} lines, expected one for each of {expected} classes")
  return dataclasses.replace(saved, class_names=names)


def print_json(path: Path, best: list) -> None:
  """Prints the predictions of an image as one line of JSON."""
  from gfnet_jax.files import to_json
  from gfnet_jax.inference.prediction_files import describe

  print(to_json(describe(path, best)), flush=True)


def print_table(path: Path, best: list) -> None:
  """Prints the predictions of an image, a line for each class."""
  print(printable(path, limit=4000))
  for one in best:
    print(f"  {one.probability:7.2%}  {printable(one.class_name)}", flush=True)
