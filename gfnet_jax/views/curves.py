"""Loss, accuracy and rates of training runs over time, drawn by matplotlib."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gfnet_jax.errors import UserError
from gfnet_jax.metric_lines import describe_damaged, read_metric_lines
from gfnet_jax.text import printable
from gfnet_jax.views.pyplot import check_format, import_pyplot, save_figure

Series = dict[str, list[tuple[int, float]]]  # (step, value) by name, in the order of the steps

STYLES = ("-", "--", ":")  # of a panel's metrics, in their order
# A panel: its title, and metrics with the factor that they are shown with.
PANELS = {
  "loss": {"train_loss": 1, "eval_loss": 1, "eval_ema_loss": 1},
  "accuracy in %": {"train_accuracy": 100, "eval_top1": 1, "eval_ema_top1": 1},
  "mIoU in %": {"eval_miou": 1, "eval_ema_miou": 1},
  "learning rate": {"learning_rate": 1},
  "images per second": {"images_per_second": 1},
}


class Curves(NamedTuple):
  """What a run has written.

  Attributes:
    path: its work directory, or its file, as it was named.
    series: of all metrics.
    epochs_per_step: to tell epochs from steps; None if no line says.
    warnings: about lines that cannot be read.
  """

  path: Path
  series: Series
  epochs_per_step: float | None
  warnings: list[str]


def read_curves(path: Path) -> Curves:
  """Reads the metrics of a run, which may still be under way, have been continued or rolled back.

  Args:
    path: a work directory, or a file such as metrics.jsonl.

  Raises:
    UserError: if there are no metrics.
  """
  files = [path / "metrics.jsonl", path / "performance.jsonl"] if path.is_dir() else [path]
  if not files[0].is_file():
    raise UserError(
      f"{path} holds no metrics.jsonl, expected the work directory of a training run"
      if path.is_dir()
      else f"{path} does not exist, expected the work directory of a training run"
    )
  series, said, rate = {}, [], None
  for file in filter(Path.is_file, files):
    try:
      found, damaged = _read_series(file)
    except OSError as error:
      raise UserError(f"cannot read {file} ({error.strerror}); change its permissions") from error
    series |= found
    said += [f"{describe_damaged(damaged, str(file))}, and is left out"] if damaged else []
  if not series:
    raise UserError(
      f"{files[0]} holds no metrics yet; wait for the first line, or name another run"
    )
  if epochs := [(step, epoch) for step, epoch in series.get("epoch", ()) if step and epoch > 0]:
    rate = epochs[-1][1] / epochs[-1][0]
  return Curves(path, series, rate, said)


def _read_series(path: Path) -> tuple[Series, list[int]]:
  """The series of a file, and the numbers of its damaged lines.

  Where the steps go back, as they do in copies put together by hand, the later lines hold.
  """
  series, damaged, last = {}, [], 0
  for line in read_metric_lines(path):
    if not line.values:
      damaged += [line.number] if line.whole else []
      continue
    values = dict(line.values)
    step = values.pop("step")
    if step < last:
      series = {name: [at for at in points if at[0] < step] for name, points in series.items()}
    last = step
    for name, value in values.items():
      series.setdefault(name, []).append((step, math.nan if value is None else float(value)))
  return series, damaged


def draw_curves(runs: Sequence[Curves], path: Path, *, by_step: bool = False) -> None:
  """Draws several runs on one sheet: a colour for each run, a line style for each metric.

  Args:
    runs: at least one.
    path: of the picture, .png or .svg.
    by_step: whether the abscissa is steps also where all runs know their epochs.

  Raises:
    UserError: for another suffix, if the file cannot be written, or matplotlib is missing.
  """
  check_format(path)
  pyplot = import_pyplot()
  by_step = by_step or any(run.epochs_per_step is None for run in runs)
  panels = {
    title: metrics
    for title, metrics in PANELS.items()
    if any(metrics.keys() & run.series.keys() for run in runs)
  }
  if not panels:
    raise UserError("none of the metrics is a loss, an accuracy or a rate; name another run")
  columns = min(2, len(panels))
  rows = math.ceil(len(panels) / columns)
  figure, grid = pyplot.subplots(
    rows, columns, figsize=(6 * columns, 3.6 * rows), layout="constrained", squeeze=False
  )
  for axes, (title, metrics) in zip(grid.flat, panels.items(), strict=False):
    _draw_panel(axes, title, metrics, runs, by_step)
  for axes in list(grid.flat)[len(panels) :]:
    axes.set_axis_off()
  lines = [
    pyplot.Line2D([], [], color=f"C{i % 10}", linewidth=3, label=name)
    for i, name in enumerate(legend_names(runs))
  ]
  figure.legend(handles=lines, loc="outside upper center", ncols=min(4, len(runs)), fontsize=9)
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box in place of a letter
    save_figure(figure, path)


def _draw_panel(
  axes, title: str, metrics: dict[str, float], runs: Sequence[Curves], by_step: bool
) -> None:
  for name, style in zip(metrics, STYLES, strict=False):
    if not any(name in run.series for run in runs):
      continue
    for i, run in enumerate(runs):
      points = run.series.get(name, [])
      scale = 1 if by_step else run.epochs_per_step
      x, y = [step * scale for step, _ in points], [value * metrics[name] for _, value in points]
      marker = "." if len(points) < 30 else ""
      axes.plot(x, y, style, color=f"C{i % 10}", marker=marker, linewidth=1.3)
    axes.plot([], [], style, color="grey", label=name)
  if len(metrics) > 1:
    axes.legend(fontsize=8)
  axes.set(title=title, xlabel="step" if by_step else "epoch")
  axes.grid(alpha=0.3)


def legend_names(runs: Sequence[Curves]) -> list[str]:
  """As short a name as tells each run from the others: the last parts of its path."""
  parts = [run.path.absolute().parts for run in runs]
  names = []
  for own in parts:
    length = 1
    while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
      length += 1
    # A dollar would begin a formula.
    names.append(printable("/".join(own[-length:]), limit=60).replace("$", r"\$"))
  return names
