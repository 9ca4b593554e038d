"""Trains a small network with every token mixer and several seeds, and compares the accuracies.

  python tools/compare_mixers.py                              # ten epochs of handwritten digits
  python tools/compare_mixers.py --figure mixers.svg          # with a plot; needs matplotlib
  python tools/compare_mixers.py --mixers fnet conv3 --seeds 5 --config.model.depth=8

Prints a table in Markdown: top-1 of the evaluation behind the last epoch, in percent, as mean,
standard deviation and every seed. However it was interrupted, the same command continues
it. The output directory receives

  results.json          every finished run, the settings and the machine
  <mixer>/seed-<n>      the work directory of a run, with log.txt for what train.py prints

Fields of the config are overridden as for train.py; what is compared are its mixers and seeds.
"""

import math
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project need not be installed

from gfnet_jax.command_line import ArgumentParser, run

SHORT = ("--config.num_epochs=10", "--config.optimizer.warmup_epochs=1")

Row = dict[str, Any]


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog="tools/compare_mixers.py", description=__doc__)
  parser.add_argument(
    "--config", metavar="FILE[:ARGUMENT]", help="(default: configs/digits.py, but fewer epochs)"
  )
  parser.add_argument("--mixers", nargs="+", metavar="MIXER", help="(default: all)")
  parser.add_argument("--seeds", type=int, default=3, help="runs of a mixer (default: 3)")
  parser.add_argument("--output", type=Path, default=Path("runs/mixers"))
  parser.add_argument("--figure", type=Path, help="file of a plot, such as mixers.svg")
  options, overrides = parser.parse_known_args(arguments)
  if options.seeds < 1:
    parser.error("--seeds must be positive")

  from gfnet_jax import startup
  from gfnet_jax.config_files import read_config

  if options.config:
    config = read_config(options.config, overrides)
  else:
    config = read_config("configs/digits.py", [*SHORT, *overrides])
  startup.start()
  startup.check_devices()
  from gfnet_jax.files import make_directory
  from gfnet_jax.models.mixers import MIXERS
  from gfnet_jax.names import look_up
  from gfnet_jax.views.pyplot import check_format, import_pyplot

  mixers = list(dict.fromkeys(options.mixers or MIXERS))
  for mixer in mixers:
    look_up("mixer", mixer, MIXERS)
  pyplot = None
  if options.figure:
    check_format(options.figure)
    pyplot = import_pyplot()
  config.eval_every_epochs = config.num_epochs  # once, at the end
  make_directory(options.output)
  runs = compare(config, mixers, options.seeds, options.output)
  if runs is None:
    return
  rows = summarize(runs, mixers)
  print(markdown(rows))
  if pyplot:
    make_directory(options.figure.parent)
    draw(pyplot, rows, config, options.figure)


def compare(config, mixers: list[str], seeds: int, output: Path) -> list[Row] | None:
  """A row for every run; None if a signal stopped them."""
  from benchmarks._results import do_runs, train_quietly

  import gfnet_jax

  def train(mixer: str, seed: int) -> Row | None:
    own, workdir = config.copy_and_resolve_references(), output / mixer / f"seed-{seed}"
    own.name, own.seed, own.model.mixer = f"{mixer}-{seed}", seed, mixer
    results = train_quietly(own, workdir)
    if results is None:
      return None
    return {"parameters": count_parameters(gfnet_jax.load_model(workdir).model), **results}

  wanted = [dict(mixer=mixer, seed=seed) for seed in range(seeds) for mixer in mixers]
  return do_runs(config, wanted, output, train)


def count_parameters(model) -> int:
  from gfnet_jax.models.functional import split

  return sum(math.prod(value.shape) for value in split(model)[1].values())


def summarize(runs: list[Row], mixers: list[str]) -> list[Row]:
  """A row per mixer, the best mean first."""
  rows = []
  for mixer in mixers:
    own = sorted((run for run in runs if run["mixer"] == mixer), key=lambda run: run["seed"])
    top1 = [run["top1"] for run in own]
    rows.append(
      {
        "mixer": mixer,
        "parameters": own[0]["parameters"],
        "mean": statistics.fmean(top1),
        "deviation": statistics.stdev(top1) if len(top1) > 1 else None,
        "top1": top1,
        "loss": statistics.fmean(run["loss"] for run in own),
      }
    )
  return sorted(rows, key=lambda row: -row["mean"])


def markdown(rows: list[Row]) -> str:
  lines = [
    "| mixer | parameters | top-1, mean | standard deviation | every seed | loss, mean |",
    "|---|---|---|---|---|---|",
  ]
  for row in rows:
    deviation = "" if row["deviation"] is None else f"{row['deviation']:.2f}"
    seeds = ", ".join(f"{value:.2f}" for value in row["top1"])
    lines.append(
      f"| `{row['mixer']}` | {row['parameters']:,} | {row['mean']:.2f} | {deviation} | {seeds} "
      f"| {row['loss']:.3f} |"
    )
  return "\n".join(lines)


def draw(pyplot, rows: list[Row], config, path: Path) -> None:
  """A dot for every seed and a line for the mean, the best mixer on top."""
  from gfnet_jax.views.pyplot import save_figure

  figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.4 * len(rows)), layout="constrained")
  for place, row in enumerate(reversed(rows)):
    axes.plot(row["top1"], [place] * len(row["top1"]), "o", color="C0", alpha=0.6)
    axes.plot([row["mean"]] * 2, [place - 0.3, place + 0.3], color="black")
  axes.set_yticks(range(len(rows)), [row["mixer"] for row in reversed(rows)])
  axes.set_xlabel("top-1 in percent: every seed, and the mean")
  axes.set_title(f"{config.data.name}, {config.num_epochs:g} epochs")
  axes.grid(axis="x", alpha=0.3)
  save_figure(figure, path)


if __name__ == "__main__":
  sys.exit(run(main))
