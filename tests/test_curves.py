"""Sheets of training runs: what is read of runs that met accidents, and what is drawn."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from gfnet_jax.errors import UserError
from gfnet_jax.views.curves import legend_names, read_curves
from gfnet_jax.views.pyplot import import_pyplot, save_figure

TOOL = "tools/plot.py"


def write_run(directory: Path, steps=range(1, 5), *, end: bytes = b"", **values) -> Path:
  """A work directory with lines of training, and an evaluation at the last step."""
  directory.mkdir(parents=True, exist_ok=True)
  lines = [
    {"step": step, "epoch": step / 2, "learning_rate": 0.1, "train_loss": 1 / step} | values
    for step in steps
  ]
  lines += [{"step": steps[-1], "epoch": steps[-1] / 2, "eval_loss": 0.5, "eval_top1": 60.0}]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (directory / "metrics.jsonl").write_bytes(text.encode() + end)
  speed = {"step": steps[-1], "images_per_second": 100.0}
  (directory / "performance.jsonl").write_text(json.dumps(speed) + "\n")
  return directory


def test_a_run_is_read(tmp_path):
  run = read_curves(write_run(tmp_path / "run"))
  assert run.series["train_loss"] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
  assert run.series["eval_top1"] == [(4, 60.0)]
  assert run.series["images_per_second"] == [(4, 100.0)]
  assert run.epochs_per_step == 0.5
  assert run.warnings == []
  assert read_curves(tmp_path / "run" / "metrics.jsonl").series["train_loss"][0] == (1, 1.0)


def test_later_lines_hold_where_steps_go_back(tmp_path):
  run = write_run(tmp_path / "run", range(1, 7))
  with (run / "metrics.jsonl").open("a") as file:
    for step, loss in ((4, 0.9), (5, 0.8)):
      file.write(json.dumps({"step": step, "train_loss": loss}) + "\n")
  series = read_curves(run).series
  assert series["train_loss"] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.9), (5, 0.8)]
  assert series["eval_loss"] == []


def test_damage_is_named_and_half_a_line_is_not(tmp_path):
  path = write_run(tmp_path / "run", end=b'\xff\n\n{"step": 5, "train_lo') / "metrics.jsonl"
  run = read_curves(tmp_path / "run")
  assert run.warnings == [f"line 6, 7 of {path} cannot be read, and is left out"]
  assert len(run.series["train_loss"]) == 4


def test_what_was_not_finite_is_a_gap(tmp_path):
  run = read_curves(write_run(tmp_path / "run", train_loss=None))
  assert all(math.isnan(value) for _, value in run.series["train_loss"])


def test_names_are_as_short_as_tells_them_apart(tmp_path):
  paths = [tmp_path / name for name in ("a/run", "b/run", "other", "$x$_\x1b")]
  runs = [read_curves(write_run(path)) for path in paths]
  assert legend_names(runs) == ["a/run", "b/run", "other", r"\$x\$_\x1b"]
  assert legend_names([runs[2], runs[2]])[0].endswith("other")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_runs_of_different_lengths_share_a_sheet(tmp_path, in_process, suffix):
  pytest.importorskip("matplotlib")
  runs = [
    write_run(tmp_path / "_short", range(1, 3)),
    write_run(tmp_path / "long $run$", range(1, 90), end=b"\0\n"),
    write_run(tmp_path / "never finite", train_loss=None),
  ]
  (runs[2] / "performance.jsonl").unlink()
  output = tmp_path / f"curves.{suffix}"
  code, printed, errors = in_process(TOOL, *runs, "--output", output)
  assert (code, printed) == (0, f"wrote {output}\n")
  assert errors.startswith("warning: line 91 of ")
  assert errors.count("\n") == 1
  if suffix == "png":
    with Image.open(output) as image:
      colours = {colour for _, colour in image.convert("RGB").getcolors(2**20)}
    assert colours >= {(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0x2C, 0xA0, 0x2C)}, "C0, C1, C2"
  else:
    text = output.read_text()
    # matplotlib writes each text as a comment before its glyphs.
    titles = ("loss", "accuracy in %", "learning rate", "images per second", "epoch")
    for shown in (*titles, "_short", "never finite", "train_loss", "eval_top1"):
      assert f"<!-- {shown} -->" in text


def test_runs_without_epochs_are_drawn_over_steps(tmp_path, in_process):
  pytest.importorskip("matplotlib")
  run = write_run(tmp_path / "run", epoch=0.0)
  text = (run / "metrics.jsonl").read_text().replace('"epoch": 2.0', '"epoch": 0')
  (run / "metrics.jsonl").write_text(text)
  assert in_process(TOOL, run, "--output", tmp_path / "x.svg")[0] == 0
  assert "<!-- step -->" in (tmp_path / "x.svg").read_text()


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda path: None, "does not exist, expected the work directory of a training run"),
    (Path.mkdir, "holds no metrics.jsonl, expected the work directory of a training run"),
    (lambda path: path.write_text("\n{}\n"), "holds no metrics yet; wait for the first line"),
  ],
)
def test_what_is_no_run_is_one_line(tmp_path, in_process, make, message):
  path = tmp_path / "run"
  make(path)
  code, _, errors = in_process(TOOL, path, "--output", tmp_path / "x.png")
  assert code == 2
  assert errors.startswith(f"error: {path} {message}")
  assert errors.count("\n") == 1


def test_a_figure_takes_its_place_when_it_is_complete(tmp_path):
  pytest.importorskip("matplotlib")
  pyplot = import_pyplot()
  path = tmp_path / "x.SVG"
  path.write_text("before")

  class Broken(pyplot.Figure):
    def savefig(self, file, **options):
      file.write(b"<svg")
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    save_figure(pyplot.figure(FigureClass=Broken), path)
  assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("x.SVG", "before")]
  save_figure(pyplot.figure(), path)
  assert path.read_text().startswith("<?xml")
  assert pyplot.get_fignums() == []


def test_what_cannot_be_written_is_one_line(tmp_path, in_process):
  pytest.importorskip("matplotlib")
  run = write_run(tmp_path / "run")
  for output, message in (
    (tmp_path / "x.pdf", "expected a name that ends in .png or .svg"),
    (tmp_path / "no" / "x.png", "No such file or directory"),
  ):
    code, _, errors = in_process(TOOL, run, "--output", output)
    assert (code, errors.count("\n")) == (2, 1)
    assert message in errors
    assert not list(tmp_path.glob("x*"))


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
  run = write_run(tmp_path / "run")

  def refuse(path, *_):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(Path, "open", refuse)
  with pytest.raises(UserError, match=r"cannot read .*metrics.jsonl \(Permission denied\)"):
    read_curves(run)
