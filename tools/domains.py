"""Leave every domain out in turn, with several seeds, and print the table.

  python tools/domains.py                                     # handwritten digits
  python tools/domains.py --config configs/domains.py:pacs --config.data.name=DIR --seeds 5
  python tools/domains.py --sheet domains.png                 # only draws images of every domain

Prints a table in Markdown: top-1 in percent on all images of the domain that was held out, of the
checkpoint that was best on the validation images of the others, as mean, standard deviation and
every seed; and the mean of the domains. However it was interrupted, the same command continues it.
The output directory receives

  results.json            every finished run, the settings and the machine
  <domain>/seed-<n>       the work directory of a run, with log.txt for what train.py prints

Fields of the config are overridden as for train.py; what varies are the held-out domain and the
seed.
"""

import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project need not be installed

from gfnet_jax.command_line import ArgumentParser, run

Row = dict[str, Any]


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog="tools/domains.py", description=__doc__)
  parser.add_argument(
    "--config",
    default="configs/domains.py",
    metavar="FILE[:ARGUMENT]",
    help="(default: %(default)s)",
  )
  parser.add_argument("--domains", nargs="+", metavar="DOMAIN", help="to hold out (default: all)")
  parser.add_argument("--seeds", type=int, default=3, help="runs of a domain (default: 3)")
  parser.add_argument(
    "--output",
    type=Path,
    default=Path("runs/domains"),
    metavar="DIR",
    help="directory of the runs and their results (default: %(default)s)",
  )
  parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw images, train nothing")
  options, overrides = parser.parse_known_args(arguments)
  if options.seeds < 1:
    parser.error("--seeds must be positive")

  from gfnet_jax import startup
  from gfnet_jax.config_files import read_config

  config = read_config(options.config, overrides)
  startup.start()
  startup.check_devices()
  from gfnet_jax.data.sources.domains import find_domains
  from gfnet_jax.files import make_directory, make_directory_of
  from gfnet_jax.names import look_up

  if config.data.source != "domains":
    parser.error(f"data.source of {options.config} is {config.data.source}, expected domains")
  known = find_domains(config.data)
  domains = list(dict.fromkeys(options.domains or known))
  for domain in domains:
    look_up("domain", domain, dict.fromkeys(known))
  if options.sheet:
    make_directory_of(options.sheet)
    draw(config.data, domains, options.sheet)
    return
  make_directory(options.output)
  runs = leave_out(config, domains, options.seeds, options.output)
  if runs is not None:
    print(markdown(runs, domains))


def leave_out(config, domains: list[str], seeds: int, output: Path) -> list[Row] | None:
  """A row for every run; None if a signal stopped them."""
  from benchmarks._results import do_runs, train_quietly

  def train(domain: str, seed: int) -> Row | None:
    own = config.copy_and_resolve_references()
    own.name, own.seed, own.data.held_out = f"{domain}-{seed}", seed, domain
    return train_quietly(own, output / domain / f"seed-{seed}")

  wanted = [dict(domain=domain, seed=seed) for seed in range(seeds) for domain in domains]
  return do_runs(config, wanted, output, train)


def draw(data, domains: list[str], path: Path) -> None:
  """Draws a row of images of every domain, spread over it."""
  import ml_collections

  from gfnet_jax.data.decode import load_rgb
  from gfnet_jax.data.samples import load_labelled
  from gfnet_jax.data.sources.open import open_source
  from gfnet_jax.data.sources.records import BadRecordError
  from gfnet_jax.errors import UserError
  from gfnet_jax.files import open_atomically
  from gfnet_jax.inference.pictures import PER_ROW, draw_sheet

  images, captions = [], []
  for domain in domains:
    held_out = ml_collections.ConfigDict(data)
    held_out.held_out = domain
    source = open_source(held_out, data.test_split)
    for i in range(PER_ROW):
      try:
        sample = load_labelled(source, i * len(source) // PER_ROW, load_rgb)
      except BadRecordError as error:
        raise UserError(f"{error}; repair or remove it") from error
      images.append(sample["image"])
      captions.append([domain, source.class_names[sample["label"]]])
  with open_atomically(path) as file:
    draw_sheet(images, captions).save(file, "PNG", optimize=True)
  print(f"Drawn: {path}")


def markdown(runs: list[Row], domains: list[str]) -> str:
  """The table of `runs`; the last row is the mean over the domains, seed by seed."""
  from gfnet_jax.text import printable

  seeds = sorted({row["seed"] for row in runs})
  found = {(row["domain"], row["seed"]): row["test_top1"] for row in runs}
  tops = {domain: [found[domain, seed] for seed in seeds] for domain in domains}
  lines = [
    "| held out | top-1, mean | standard deviation | every seed |",
    "|---|---|---|---|",
    *(_line(printable(domain, 60), tops[domain]) for domain in domains),
  ]
  if len(domains) > 1:
    means = [statistics.fmean(of_seed) for of_seed in zip(*tops.values(), strict=True)]
    lines.append(_line("**mean**", means))
  return "\n".join(lines)


def _line(name: str, top1: list[float]) -> str:
  deviation = f"{statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
  every = ", ".join(f"{value:.2f}" for value in top1)
  return f"| {name} | {statistics.fmean(top1):.2f} | {deviation} | {every} |"


if __name__ == "__main__":
  sys.exit(run(main))
