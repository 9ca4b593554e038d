"""A report on segmented images: IoU of every class, confusions, pictures beside the truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from gfnet_jax.console import say
from gfnet_jax.data.decode import decode_image
from gfnet_jax.data.segmentation.samples import load_masked
from gfnet_jax.data.segmentation.transforms import IGNORED
from gfnet_jax.data.sources.records import BadRecordError, MaskedSource
from gfnet_jax.errors import UserError
from gfnet_jax.files import make_directory, open_atomically, to_json, write_atomically
from gfnet_jax.inference.coloured_masks import coloured, legend
from gfnet_jax.inference.pictures import draw_confusion, draw_sheet
from gfnet_jax.inference.pixels import scores_of
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.inference.segment import segment
from gfnet_jax.text import printable

MOST_ROWS = 30  # classes in the picture of the confusion matrix
MOST_LINES = 10  # classes on the screen
PICTURES = 8  # images in predictions.png
FILES = ("report.json", "confusion.png", "predictions.png")


class Counted(Protocol):
  """What has counted the pixels: `segmentation.ConfusionStep`."""

  def confusion(self) -> np.ndarray:
    """(classes, classes), integer: pixels of a class (row) that are taken for one (column)."""


def write_segmentation_report(
  directory: Path,
  step: Counted,
  source: MaskedSource,
  saved: SavedModel,
  class_names: Sequence[str],
) -> None:
  """Writes report.json, confusion.png and predictions.png; says so.

  Files of an earlier report are replaced.

  Args:
    directory: made if it is missing.
    step: of the evaluation.
    source: of the images, the first of which are shown.
    saved: the model.
    class_names: in the order of their values.

  Raises:
    UserError: if the directory cannot be written.
  """
  make_directory(directory)
  for name in FILES:
    (directory / name).unlink(missing_ok=True)
  confusion = step.confusion()
  report = {**scores_of(confusion), "classes": describe_classes(confusion, class_names)}
  write_atomically(directory / "report.json", to_json(report, indent=2) + "\n")
  with open_atomically(directory / "confusion.png") as file:
    draw_confusion(*shown_part(confusion, class_names)).save(file, "PNG")
  written = FILES[:2]
  if sheet := draw_pictures(source, saved, class_names):
    with open_atomically(directory / "predictions.png") as file:
      sheet.save(file, "PNG")
    written = FILES
  for line in lines_of(report["classes"]):
    say(line)
  say(f"Report: {', '.join(str(directory / name) for name in written)}")


def describe_classes(confusion: np.ndarray, class_names: Sequence[str]) -> list[dict]:
  """Of every class its name, pixels, and IoU and accuracy in percent, None where it has neither."""
  right, true = np.diag(confusion), confusion.sum(1)
  union = true + confusion.sum(0) - right
  return [
    {
      "name": name,
      "pixels": int(true[i]),
      "iou": 100 * float(right[i] / union[i]) if union[i] else None,
      "accuracy": 100 * float(right[i] / true[i]) if true[i] else None,
    }
    for i, name in enumerate(class_names)
  ]


def lines_of(classes: list[dict]) -> list[str]:
  """A line for each class, or for those of the lowest IoU if there are many."""
  known = [found for found in classes if found["iou"] is not None]
  shown, heading = known, "IoU of each class:"
  if len(known) > MOST_LINES:
    shown = sorted(known, key=lambda found: found["iou"])[:MOST_LINES]
    heading = f"The {MOST_LINES} of {len(known)} classes with the lowest IoU:"
  lines = [f"  {printable(one['name'], 40):20} {one['iou']:6.2f} %" for one in shown]
  return [heading, *lines]


def shown_part(
  confusion: np.ndarray, class_names: Sequence[str]
) -> tuple[np.ndarray, list[str], list[str]]:
  """The confusion matrix in percent of each row, rounded, and the names of rows and columns.

  Up to MOST_ROWS classes, all; of more, those with the most wrong pixels, and a column for the
  rest.
  """
  wrong = confusion.sum(0) + confusion.sum(1) - 2 * np.diag(confusion)
  shown = np.sort(np.argsort(-wrong, kind="stable")[:MOST_ROWS])
  part = confusion[shown]
  columns = [class_names[i] for i in shown]
  cells = part[:, shown]
  if others := len(class_names) - len(shown):
    cells = np.column_stack([cells, part.sum(1) - cells.sum(1)])
    columns = [*columns, f"{others} others"]
  percent = 100 * cells / np.maximum(1, cells.sum(1, keepdims=True))
  return np.rint(percent).astype(int), [class_names[i] for i in shown], columns


def draw_pictures(
  source: MaskedSource, saved: SavedModel, class_names: Sequence[str]
) -> Image.Image | None:
  """The first images, each beside its true mask and the predicted one; None without any."""
  images, captions, values = [], [], set()
  for index in range(min(PICTURES, len(source))):
    try:
      truth = load_masked(source, index, lambda image, mask: (None, np.array(mask)))["label"]
      record = source[index]
      image = decode_image(record.image)
      found = segment(saved, image)
    except (BadRecordError, UserError):  # changed since it was evaluated
      continue
    known = truth != IGNORED
    right = 100 * (found == truth)[known].mean() if known.any() else 100
    images += [image, coloured(truth).convert("RGB"), coloured(found).convert("RGB")]
    name = Path(record.name).name
    captions += [[name], ["true"], [f"predicted, {right:.0f} % right"]]
    values |= {*np.unique(truth[known]).tolist(), *np.unique(found).tolist()}
  if not images:
    return None
  sheet = draw_sheet(images, captions, per_row=6)
  below = legend(class_names, sorted(values), sheet.width)
  whole = Image.new("RGB", (sheet.width, sheet.height + below.height), (255, 255, 255))
  whole.paste(sheet, (0, 0))
  whole.paste(below, (0, sheet.height))
  return whole
