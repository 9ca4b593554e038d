"""Classifies images with a trained or converted model.

Images and folders of images; the five most probable classes of each:

  python tools/predict.py runs/gfnet-xs photo.jpg holidays/

One JSON object per image, for other programs:

  python tools/predict.py runs/gfnet-xs holidays/ --json > predictions.jsonl

Classes have the names in the checkpoint, or in a file with one name per line; without
either, as after converting official weights, they are shown by index:

  python tools/predict.py runs/gfnet-xs photo.jpg --class-names imagenet_classes.txt
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project need not be installed

from gfnet_jax.command_line import ArgumentParser, run
from gfnet_jax.errors import UserError

Prediction = dict[str, str | int | float]


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog="tools/predict.py", description=__doc__)
  parser.add_argument("checkpoint", type=Path, help="of train.py or convert_torch_weights.py")
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

  # Importing jax takes a second that --help and typing errors need not wait for.
  from gfnet_jax.compilation_cache import enable_compilation_cache
  from gfnet_jax.training.checkpoint import load_model
  from gfnet_jax.training.precision import matmul_precision

  enable_compilation_cache()
  saved = load_model(
    options.checkpoint, options.which, precision=options.precision, ema=options.ema
  )
  num_classes = saved.config["num_classes"]
  names = saved.class_names
  if options.class_names:
    names = read_class_names(options.class_names, num_classes)
  show = print_json if options.json else print_table
  with matmul_precision(saved.precision):
    for path, predictions in predict(
      saved.model, paths, names, top=min(options.top, num_classes), batch_size=options.batch_size
    ):
      show(path, predictions)


def find_images(paths: list[Path]) -> list[Path]:
  """The files among the paths, and the image files under the folders among them, sorted.

  Raises:
    UserError: for a path that does not exist, or a folder without images.
  """
  from PIL import Image

  suffixes = Image.registered_extensions()
  images = []
  for path in paths:
    found = (
      [path]
      if path.is_file()
      else sorted(
        file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file()
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


def predict(
  model, paths: list[Path], names: list[str] | None, *, top: int, batch_size: int
) -> Iterator[tuple[Path, list[Prediction]]]:
  """The most probable classes of every image, best first.

  Raises:
    UserError: for an image that cannot be read.
  """
  import jax
  import numpy as np

  classify = make_classifier(model, top)
  batch_size = min(batch_size, len(paths))
  for start in range(0, len(paths), batch_size):
    chunk = paths[start : start + batch_size]
    images = [read_image(path, model.image_size) for path in chunk]
    images += images[-1:] * (batch_size - len(chunk))  # one size, to be compiled once
    probabilities, indices = jax.device_get(classify(np.stack(images)))
    for path, *best in zip(chunk, probabilities, indices, strict=False):
      yield (
        path,
        [
          {"index": int(i), "class": names[i] if names else str(i), "probability": float(p)}
          for p, i in zip(*best, strict=True)
        ],
      )


def make_classifier(model, top: int) -> Callable:
  """Compiles images (batch, H, W, 3), uint8, to (probabilities, indices), each (batch, top)."""
  import jax

  from gfnet_jax.data.normalize import normalize
  from gfnet_jax.models.functional import merge, split

  structure, params = split(model)

  @jax.jit
  def classify(params, images):
    return jax.lax.top_k(jax.nn.softmax(merge(structure, params)(normalize(images))), top)

  return lambda images: classify(params, images)


def read_image(path: Path, image_size: tuple[int, int]):
  """The image as the model is evaluated on it, (H, W, 3), uint8."""
  from gfnet_jax.data.transforms import BadImageError, decode_image, eval_transform

  try:
    return eval_transform(decode_image(path.read_bytes()), image_size)
  except (OSError, BadImageError) as error:
    raise UserError(f"cannot read {path}: {error}") from error


def print_json(path: Path, predictions: list[Prediction]) -> None:
  print(json.dumps({"image": str(path), "predictions": predictions}), flush=True)


def print_table(path: Path, predictions: list[Prediction]) -> None:
  print(path)
  for prediction in predictions:
    print(f"  {prediction['probability']:7.2%}  {prediction['class']}", flush=True)


if __name__ == "__main__":
  sys.exit(run(main))
