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
  lines = file.suffix.lower() == ".jsonl"
  begin, between, end = ("", "\n", "\n") if lines else ("[\n", ",\n", "\n]\n")
  with open_atomically(file) as output:
    before = begin

    def write(path: Path, predictions: Sequence[Prediction]) -> None:
      nonlocal before
      value = describe(path, predictions[:top])
      output.write(f"{before}{to_json(value | {'probabilities': _by_index(predictions)})}".encode())
      before = between

    yield write
    nothing = b"" if lines else b"[]\n"
    output.write(nothing if before is begin else end.encode())


@contextmanager
def csv_file(file: Path, saved: SavedModel) -> Iterator[Write]:
  """Opens a file as `json_file` does: a row per image, with a header.

  Columns: image; index, class and probability of the best class, for ImageNet its wnid, too;
  and the probability of every class under p: and its name, for ImageNet its wnid. All text is
  quoted, and none begins a formula, see `_plain`.

  Yields:
    write(path, predictions) for the predictions of all classes.
  """
  names = saved.class_names or [str(i) for i in range(saved.config["num_classes"])]
  wnid = ["wnid"] if imagenet.names().keys() & set(names) else []
  with open_atomically(file) as binary:
    # Names of files that are no UTF-8 keep their bytes.
    text = io.TextIOWrapper(binary, "utf-8", errors="surrogateescape", newline="")
    rows = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    columns = [f"p:{name}" for name in names]  # else a class may be called "index"
    rows.writerow(["image", "index", "class", *wnid, "probability", *columns])

    def write(path: Path, predictions: Sequence[Prediction]) -> None:
      best = predictions[0]
      name = [_plain(best.class_name), *([best.wnid] if wnid else [])]
      rows.writerow(
        [_plain(str(path)), best.index, *name, best.probability, *_by_index(predictions)]
      )

    yield write
    text.detach()


def _plain(text: str) -> str:
  """Text that spreadsheets do not take for a formula: an apostrophe before what would begin one."""
  return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _by_index(predictions: Sequence[Prediction]) -> list[float]:
  return [one.probability for one in sorted(predictions)]  # whose first field is the index
