"""Predictions as JSON and CSV."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gfnet_jax.data import imagenet
from gfnet_jax.files import open_atomically, to_json
from gfnet_jax.inference.saved_model import Prediction, SavedModel

Write = Callable[[Path, Sequence[Prediction]], None]


def describe(path: Path, predictions: Sequence[Prediction]) -> dict:
  """An image and its predictions for JSON; a class of ImageNet has a wnid, others have none."""
  return {
    "image": str(path),
    "predictions": [
      {"index": one.index, "class": one.class_name}
      | ({"wnid": one.wnid} if one.wnid else {})
      | {"probability": one.probability}
      for one in predictions
    ],
  }


@contextmanager
def json_file(file: Path, top: int) -> Iterator[Write]:
  """Opens a file that takes its place when it is complete: a list, or lines if it ends in .jsonl.

  What is written for an image are the `top` best of its predictions as `describe` has them,
  and "probabilities", those of all classes in the order of their indices.

  Yields:
    write(path, predictions) for the predictions of all classes.
  """
  begin, between, end = ("", "\n", "\n") if file.suffix == ".jsonl" else ("[\n", ",\n", "\n]\n")
  with open_atomically(file) as output:
    before = begin

    def write(path: Path, predictions: Sequence[Prediction]) -> None:
      nonlocal before
      value = describe(path, predictions[:top])
      output.write(f"{before}{to_json(value | {'probabilities': _by_index(predictions)})}".encode())
      before = between

    yield write
    output.write((begin if before is begin else "").encode() + end.encode())


@contextmanager
def csv_file(file: Path, saved: SavedModel) -> Iterator[Write]:
  """Opens a file as `json_file` does: a row per image, with a header.

  Columns: image; index, class and probability of the best class, for ImageNet its wnid, too;
  and the probability of every class under its name, for ImageNet its wnid.

  Yields:
    write(path, predictions) for the predictions of all classes.
  """
  names = saved.class_names or [str(i) for i in range(saved.config["num_classes"])]
  wnid = ["wnid"] if imagenet.names().keys() & set(names) else []
  with open_atomically(file) as binary:
    # Names of files that are no UTF-8 keep their bytes.
    text = io.TextIOWrapper(binary, "utf-8", errors="surrogateescape", newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "index", "class", *wnid, "probability", *names])

    def write(path: Path, predictions: Sequence[Prediction]) -> None:
      best = predictions[0]
      name = [best.class_name, best.wnid] if wnid else [best.class_name]
      rows.writerow([path, best.index, *name, best.probability, *_by_index(predictions)])

    yield write
    text.detach()


def _by_index(predictions: Sequence[Prediction]) -> list[float]:
  return [one.probability for one in sorted(predictions)]  # whose first field is the index
