"""A report on an evaluation: accuracy of every class, confusion matrix, most confident mistakes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gfnet_jax.console import say
from gfnet_jax.data.decode import BadImageError, decode_image
from gfnet_jax.data.sources.records import BadRecordError, Record, Source
from gfnet_jax.files import make_directory, open_atomically, to_json, write_atomically
from gfnet_jax.inference.pictures import draw_confusion, draw_sheet
from gfnet_jax.inference.verdicts import Verdicts
from gfnet_jax.text import printable

MOST_ROWS = 30  # classes in the picture of the confusion matrix
MOST_LINES = 10  # classes on the screen
MOST_MISTAKES = 10
FILES = ("report.json", "confusion.png", "mistakes.png")


def write_report(
  directory: Path, verdicts: Verdicts, source: Source, class_names: Sequence[str]
) -> None:
  """Writes report.json, confusion.png and, if there are mistakes, mistakes.png; says so.

  Files of an earlier report are replaced. With more than MOST_ROWS classes, the picture shows
  those with the most mistakes.

  Args:
    directory: made if it is missing.
    verdicts: on all images of the source.
    source: of the images.
    class_names: in the order of the labels.

  Raises:
    UserError: if the directory cannot be written.
  """
  make_directory(directory)
  for name in FILES:
    (directory / name).unlink(missing_ok=True)
  mistakes = find_mistakes(verdicts)
  records = {int(i): _record(source, int(i)) for i in mistakes}
  report = summarize_classes(verdicts, class_names)
  report["mistakes"] = [
    {
      "image": records[i].name if records.get(i) else f"image {i}",
      "class": class_names[verdicts.labels[i]],
      "predicted": class_names[verdicts.predicted[i]],
      "probability": float(verdicts.probabilities[i]),
    }
    for i in mistakes.tolist()
  ]
  write_atomically(directory / "report.json", to_json(report, indent=2) + "\n")
  with open_atomically(directory / "confusion.png") as file:
    draw_confusion(*confusion_of(verdicts, class_names)).save(file, "PNG")
  written = ["report.json", "confusion.png"]
  if _draw_mistakes(directory / "mistakes.png", report["mistakes"], list(records.values())):
    written.append("mistakes.png")
  for line in describe_classes(report["classes"]):
    say(line)
  say(f"Report: {', '.join(str(directory / name) for name in written)}")


def summarize_classes(verdicts: Verdicts, class_names: Sequence[str]) -> dict:
  """The counts of every class.

  Returns:
    {"images": all, "correct": of them, "classes": one for each, with its name, images, correct,
    accuracy in percent (None without images) and predicted_as, the images by predicted class}.
  """
  pairs = Counter(zip(verdicts.labels.tolist(), verdicts.predicted.tolist(), strict=True))
  predicted_as = [Counter() for _ in class_names]
  for (label, predicted), count in pairs.items():
    predicted_as[label][predicted] = count
  classes = []
  for label, (name, found) in enumerate(zip(class_names, predicted_as, strict=True)):
    images, correct = found.total(), found[label]
    classes.append(
      {
        "name": name,
        "images": images,
        "correct": correct,
        "accuracy": 100 * correct / images if images else None,
        "predicted_as": {class_names[other]: count for other, count in found.most_common()},
      }
    )
  correct = sum(found["correct"] for found in classes)
  return {"images": len(verdicts.labels), "correct": correct, "classes": classes}


def find_mistakes(verdicts: Verdicts) -> np.ndarray:
  """The indices of the most confident mistakes, the most confident first."""
  wrong = np.flatnonzero(verdicts.predicted != verdicts.labels)
  confidence = np.nan_to_num(verdicts.probabilities[wrong], nan=-1.0)
  return wrong[np.argsort(-confidence, kind="stable")][:MOST_MISTAKES]


def confusion_of(
  verdicts: Verdicts, class_names: Sequence[str]
) -> tuple[np.ndarray, list[str], list[str]]:
  """The counts for the picture, and the names of its rows and columns.

  Up to MOST_ROWS classes, all; of more, those with the most mistakes, and a column for the rest.
  """
  shown = np.arange(len(class_names))
  if len(class_names) > MOST_ROWS:
    wrong = verdicts.predicted != verdicts.labels
    mistakes = np.zeros(len(class_names), int)
    np.add.at(mistakes, verdicts.labels[wrong], 1)
    np.add.at(mistakes, verdicts.predicted[wrong], 1)
    shown = np.sort(np.argsort(-mistakes, kind="stable")[:MOST_ROWS])
  place = np.full(len(class_names), len(shown))  # behind all that are shown
  place[shown] = np.arange(len(shown))
  counts = np.zeros((len(shown) + 1, len(shown) + 1), int)
  np.add.at(counts, (place[verdicts.labels], place[verdicts.predicted]), 1)
  rows = [class_names[i] for i in shown]
  if len(shown) == len(class_names):
    return counts[:-1, :-1], rows, rows
  return counts[:-1], rows, [*rows, f"{len(class_names) - len(shown)} others"]


def describe_classes(classes: list[dict]) -> list[str]:
  """A line for each class, or for those of the lowest accuracy if there are many."""
  counted = [found for found in classes if found["images"]]
  shown, heading = counted, "Accuracy of each class:"
  if len(counted) > MOST_LINES:
    shown = sorted(counted, key=lambda found: found["accuracy"])[:MOST_LINES]
    heading = f"The {MOST_LINES} of {len(counted)} classes with the lowest accuracy:"
  lines = [heading]
  for found in shown:
    others = {name: n for name, n in found["predicted_as"].items() if name != found["name"]}
    most = max(others, key=others.get, default=None)
    taken = f"   {others[most]} taken for {printable(most, 40)}" if most is not None else ""
    lines.append(
      f"  {printable(found['name'], 40):20} {found['accuracy']:6.2f} % of {found['images']}{taken}"
    )
  return lines


def _record(source: Source, index: int) -> Record | None:
  """A record, or None if it cannot be read any more."""
  try:
    return source[index]
  except BadRecordError:
    return None


def _draw_mistakes(path: Path, mistakes: list[dict], records: list[Record | None]) -> bool:
  """Draws the sheet, if there are mistakes whose images can still be read."""
  images, captions = [], []
  for mistake, record in zip(mistakes, records, strict=True):
    try:
      image = decode_image(record.image) if record else None
    except BadImageError:  # changed since it was evaluated
      image = None
    if image is not None:
      images.append(image)
      percent = f"{100 * mistake['probability']:.0f} %"
      captions.append(
        [f"true: {mistake['class']}", (f"predicted: {mistake['predicted']}", f" ({percent})")]
      )
  if not images:
    return False
  with open_atomically(path) as file:
    draw_sheet(images, captions).save(file, "PNG")
  return True
