"""Classifies images with a trained or converted model.

Images and folders of images; the five most probable classes of each:

  gfnet-jax predict runs/gfnet-xs photo.jpg holidays/

One JSON object per image, for other programs:

  gfnet-jax predict runs/gfnet-xs holidays/ --json > predictions.jsonl

An image that cannot be read is named and left out, and the exit code is 2 at the end.

Classes have the names in the checkpoint, or in a file with one name per line; without
either, as after converting official weights, they are shown by index:

  gfnet-jax predict runs/gfnet-xs photo.jpg --class-names imagenet_classes.txt
"""

import dataclasses
import sys
from pathlib import Path

from gfnet_jax.command_line import ArgumentParser, program
from gfnet_jax.errors import UserError
from gfnet_jax.files import to_json
from gfnet_jax.text import printable


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog=program("predict"), description=__doc__)
  parser.add_argument(
    "checkpoint", help="of train.py or convert_torch_weights.py, or an official file of weights"
  )
  parser.add_argument("images", type=Path, nargs="+", help="image files, or folders of them")
  parser.add_argument("--top", type=int, default=5, help="classes per image (default: 5)")
  parser.add_argument("--class-names", type=Path, help="file with one name per line")
  parser.add_argument("--json", action="store_true", help="one JSON object per image")
  parser.add_argument("--batch-size", type=int, default=32, help="images at once (default: 32)")
  parser.add_argument("--which", default="last", help="last, best or a step (default: last)")
  parser.add_argument("--ema", action="store_true", help="take the averaged weights")
  parser.add_argument("--precision", help="highest, default or bf16 (default: as in training)")
  options = parser.parse_args(arguments)
  if options.top < 1 or options.batch_size < 1:
    parser.error("--top and --batch-size must be positive")
  paths = find_images(options.images)

  from gfnet_jax import startup

  startup.start()
  startup.check_devices()
  import gfnet_jax

  saved = gfnet_jax.load_model(
    options.checkpoint, options.which, precision=options.precision, ema=options.ema
  )
  if options.class_names:
    names = read_class_names(options.class_names, saved.config["num_classes"])
    saved = dataclasses.replace(saved, class_names=names)
  show = print_json if options.json else print_table
  predictions = saved.predict_each(paths, top=options.top, batch_size=options.batch_size)
  bad = 0
  for path, best in zip(paths, predictions, strict=True):
    if not isinstance(best, UserError):
      show(path, best)
    elif len(paths) == 1:
      raise best
    else:
      bad += 1
      print(f"warning: {printable(best, limit=4000)}", file=sys.stderr, flush=True)
  if bad:
    raise UserError(
      f"{bad} of {len(paths)} images cannot be read (see the warnings above); repair or remove them"
    )


def find_images(paths: list[Path]) -> list[Path]:
  """The files among the paths, and the image files under the folders among them, sorted.

  Names that begin with a dot, and folders of the system's, are left out unless they are named.

  Raises:
    UserError: for a path that does not exist, or a folder without images.
  """
  from gfnet_jax.data.decode import image_suffixes
  from gfnet_jax.data.sources.listing import is_left_out

  suffixes = image_suffixes()
  images = []
  for path in paths:
    found = (
      [path]
      if path.is_file()
      else sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in suffixes
        and not any(map(is_left_out, file.relative_to(path).parts))
        and file.is_file()
      )
    )
    if not found:
      raise UserError(f"no images in {path}, expected an image file or a folder with some")
    images += found
  return images


def read_class_names(path: Path, num_classes: int) -> list[str]:
  """The lines of a file.

  Raises:
    UserError: if it cannot be read or has another number of lines than the model classes.
  """
  try:
    names = path.read_text("utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"cannot read {path} ({reason}); expected one class name per line") from error
  if len(names) != num_classes:
    raise UserError(
      f"{path} has {len(names)} lines, expected one for each of {num_classes} classes"
    )
  return names


def print_json(path: Path, best: list) -> None:
  predictions = [
    {"index": one.index, "class": one.class_name, "probability": one.probability} for one in best
  ]
  print(to_json({"image": str(path), "predictions": predictions}), flush=True)


def print_table(path: Path, best: list) -> None:
  print(printable(path, limit=4000))
  for one in best:
    print(f"  {one.probability:7.2%}  {printable(one.class_name)}", flush=True)
