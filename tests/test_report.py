"""What a report says, against counts by hand; its pictures, for few classes and for many."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gfnet_jax.data.sources.records import BadRecordError, Record
from gfnet_jax.errors import UserError
from gfnet_jax.inference.pictures import NAME_WIDTH, RIGHT, draw_confusion, draw_sheet
from gfnet_jax.inference.report import confusion_of, find_mistakes, summarize_classes, write_report
from gfnet_jax.inference.verdicts import Verdicts

NAMES = ["ant", "bee", "cat"]


def verdicts_of(labels, predicted, probabilities=None):
  probabilities = np.full(len(labels), 0.5) if probabilities is None else probabilities
  return Verdicts(np.array(labels), np.array(predicted), np.array(probabilities, np.float32))


class Pictures:
  """A source of images whose colours are their numbers; some cannot be read any more."""

  def __init__(self, count, unreadable=()):
    self.count, self.unreadable = count, unreadable

  def __getitem__(self, index):
    if index in self.unreadable:
      raise BadRecordError("gone")
    png = io.BytesIO()
    Image.new("RGB", (8, 8), (index, 100, 200)).save(png, "PNG")
    return Record(png.getvalue(), 0, f"{index}.png")


def test_counts_by_hand():
  report = summarize_classes(verdicts_of([0, 0, 0, 1, 1, 0], [0, 1, 0, 1, 0, 2]), NAMES)
  assert (report["images"], report["correct"]) == (6, 3)
  ant, bee, cat = report["classes"]
  assert ant.pop("predicted_as") == {"ant": 2, "bee": 1, "cat": 1}
  assert ant == {"name": "ant", "images": 4, "correct": 2, "accuracy": 50.0}
  assert (bee["accuracy"], bee["predicted_as"]) == (50.0, {"bee": 1, "ant": 1})
  assert (cat["images"], cat["accuracy"], cat["predicted_as"]) == (0, None, {})


def test_the_most_confident_mistakes_come_first():
  probabilities = [0.9, 0.4, 0.99, np.nan, 0.6, 0.6]
  verdicts = verdicts_of([0] * 6, [1, 1, 0, 1, 1, 1], probabilities)
  assert find_mistakes(verdicts).tolist() == [0, 4, 5, 1, 3]
  many = verdicts_of([0] * 50, [1] * 50, np.linspace(0, 1, 50))
  assert find_mistakes(many).tolist() == list(range(49, 39, -1))


@given(st.data())
def test_a_row_of_the_picture_has_all_images_of_its_class(data):
  classes = data.draw(st.integers(2, 60))
  count = data.draw(st.integers(1, 200))
  rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
  labels, predicted = rng.integers(0, classes, (2, count))
  names = [f"class {i}" for i in range(classes)]
  counts, rows, columns = confusion_of(verdicts_of(labels, predicted), names)
  assert counts.shape == (len(rows), len(columns))
  assert len(rows) == min(classes, 30)
  for row, name in zip(counts, rows, strict=True):
    label = names.index(name)
    assert row.sum() == (labels == label).sum()
    assert row[columns.index(name)] == ((labels == label) & (predicted == label)).sum()
  if classes > 30:
    assert columns[-1] == f"{classes - 30} others"
    wrong = np.bincount(labels[labels != predicted], minlength=classes)
    wrong += np.bincount(predicted[labels != predicted], minlength=classes)
    left_out = [count for name, count in zip(names, wrong, strict=True) if name not in rows]
    assert max(left_out) <= min(wrong[names.index(name)] for name in rows)


def test_a_report_on_disk(tmp_path, capsys):
  verdicts = verdicts_of([0, 1, 2, 2], [0, 2, 0, 2], [0.9, 0.8, 0.7, 0.6])
  write_report(tmp_path / "new", verdicts, Pictures(4), NAMES)
  report = json.loads((tmp_path / "new/report.json").read_text())
  assert [found["accuracy"] for found in report["classes"]] == [100.0, 0.0, 50.0]
  assert report["mistakes"] == [
    {"image": "1.png", "class": "bee", "predicted": "cat", "probability": pytest.approx(0.8)},
    {"image": "2.png", "class": "cat", "predicted": "ant", "probability": pytest.approx(0.7)},
  ]
  printed = capsys.readouterr().out
  assert "  bee                    0.00 % of 1   1 taken for cat\n" in printed
  names = [f"{tmp_path}/new/{name}" for name in ("report.json", "confusion.png", "mistakes.png")]
  assert printed.splitlines()[-1] == f"Report: {', '.join(names)}"
  with Image.open(tmp_path / "new/mistakes.png") as sheet:
    colours = {colour for _, colour in sheet.getcolors(10**6)}
  assert {(1, 100, 200), (2, 100, 200)} <= colours
  assert (3, 100, 200) not in colours
  # Of another evaluation, without a mistake: no old sheet stays.
  write_report(tmp_path / "new", verdicts_of([0, 1], [0, 1]), Pictures(2), NAMES)
  assert json.loads((tmp_path / "new/report.json").read_text())["mistakes"] == []
  assert not (tmp_path / "new/mistakes.png").exists()


def test_images_that_are_gone_are_left_out_of_the_sheet(tmp_path):
  verdicts = verdicts_of([0, 0, 0], [1, 1, 1], [0.9, 0.8, np.nan])
  write_report(tmp_path, verdicts, Pictures(3, unreadable=(1,)), NAMES)
  mistakes = json.loads((tmp_path / "report.json").read_text())["mistakes"]
  assert [mistake["image"] for mistake in mistakes] == ["0.png", "image 1", "2.png"]
  assert mistakes[2]["probability"] is None
  write_report(tmp_path, verdicts, Pictures(3, unreadable=range(3)), NAMES)
  assert not (tmp_path / "mistakes.png").exists()


def test_a_directory_that_is_a_file(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="is a file, expected a directory"):
    write_report(tmp_path / "file", verdicts_of([0], [1]), Pictures(1), NAMES)


def test_cells_are_as_dark_as_their_share():
  counts = np.array([[4, 0], [1, 3]])
  image = draw_confusion(counts, ["a", "b"], ["a", "b"])
  right, bottom = image.width - 16, image.height - 16
  assert image.getpixel((right - 56 - 50, bottom - 56 - 50)) == RIGHT
  assert image.getpixel((right - 50, bottom - 56 - 50)) == (255, 255, 255)
  expected = tuple(round(255 + 0.75 * (value - 255)) for value in RIGHT)
  assert image.getpixel((right - 50, bottom - 50)) == expected


def test_pictures_stay_small_for_many_classes_and_long_or_odd_names(tmp_path):
  rng = np.random.default_rng(0)
  labels, predicted = rng.integers(0, 1000, (2, 5000))
  names = [f"{i} {'very ' * 20}long\n\x1b[31m\u4e2d" for i in range(1000)]
  write_report(tmp_path, verdicts_of(labels, predicted), Pictures(5000), names)
  with Image.open(tmp_path / "confusion.png") as image:
    assert max(image.size) < 1300
  with Image.open(tmp_path / "mistakes.png") as image:
    assert max(image.size) < 1000


def test_a_long_name_leaves_room_for_what_follows_it():
  images, name = [Image.new("RGB", (9, 9))], "predicted: " + "long " * 40
  sheets = [draw_sheet(images, [[(name, f" ({percent} %)")]]) for percent in (64, 65, 64)]
  assert np.array_equal(sheets[0], sheets[2]) and not np.array_equal(sheets[0], sheets[1])
  cut, whole = draw_sheet(images, [[name]]), draw_sheet(images, [["short"]])
  assert cut.size == whole.size == sheets[0].size


def test_thin_images_and_the_smallest_ones():
  images = [Image.new("RGB", size, "red") for size in ((1, 1), (3000, 1), (1, 700), (5, 5))]
  sheet = draw_sheet(images, [["x" * 500]] * 4)
  assert sheet.width == 4 * (180 + 8) + 8
  assert NAME_WIDTH < 180
