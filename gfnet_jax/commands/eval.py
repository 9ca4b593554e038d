"""Evaluates a trained or converted model.

On the data set that it was trained with; nothing but the directory is needed:

  gfnet-jax eval --checkpoint runs/digits

On a folder of images, DIR/<class>/*.JPEG or DIR/val/<class>/*.JPEG, or on a TFDS data set:

  gfnet-jax eval --checkpoint runs/gfnet-xs --data DIR
  gfnet-jax eval --torch-checkpoint gfnet-xs.pth --data imagenet2012

Some of ImageNet's classes, in folders named by their WordNet ids, are enough; the result says
whether the model chose among all 1000 or, with --classes present, among those:

  gfnet-jax eval --checkpoint gfnet-xs --data imagenette --classes present

Which classes it confuses, as JSON and pictures (docs/photos.md):

  gfnet-jax eval --checkpoint runs/digits --report runs/digits/report

Robustness (docs/robustness.md): under attack, and on ImageNet's other test sets by name:

  gfnet-jax eval --checkpoint runs/digits --attack pgd
  gfnet-jax eval --checkpoint gfnet-xs --data imagenet_a --data-dir DIR

Every image counts once, for any batch size and any number of devices.
"""

import argparse
from pathlib import Path

from gfnet_jax.command_line import ArgumentParser, add_process_flags, program


def main(arguments: list[str]) -> None:
  options = _parse(arguments)
  from gfnet_jax import startup

  startup.start()
  import jax

  import gfnet_jax
  from gfnet_jax import distributed
  from gfnet_jax.console import say
  from gfnet_jax.files import make_directory, to_json, write_atomically
  from gfnet_jax.inference.attacks import make_attack
  from gfnet_jax.inference.metrics import format_results
  from gfnet_jax.inference.parts import describe_parts

  distributed.initialize(options.coordinator, options.num_processes, options.process_id)
  startup.check_devices()
  attack = None
  if options.attack:
    budget = dict(eps=options.attack_eps, step=options.attack_step, steps=options.attack_steps)
    attack = make_attack(options.attack, seed=options.attack_seed or 0, **budget)
  if options.output:  # before the work, not after
    make_directory(options.output.parent)
  if options.report:
    make_directory(options.report)
  saved = gfnet_jax.load_model(
    options.torch_checkpoint or options.checkpoint,
    options.which,
    precision=options.precision,
    ema=options.ema,
  )
  results = gfnet_jax.evaluate(
    saved,
    options.data,
    source=options.source,
    split=options.split,
    data_dir=options.data_dir,
    batch_size=options.batch_size,
    classes=options.classes,
    attack=attack,
    report=options.report,
  )
  if options.output and jax.process_index() == 0:
    write_atomically(options.output, to_json(results, indent=2) + "\n")
  if attack:
    say(f"Under attack by {attack}")
  for line in (*describe_parts(results), format_results(results, saved.config["num_classes"])):
    say(line)


def _parse(arguments: list[str]) -> argparse.Namespace:
  from gfnet_jax.data.sources.open import SOURCES

  parser = ArgumentParser(prog=program("eval"), description=__doc__)
  model = parser.add_mutually_exclusive_group(required=True)
  model.add_argument(
    "--checkpoint", help="work directory of train.py, a checkpoint, an official file or its name"
  )
  model.add_argument(
    "--torch-checkpoint", type=Path, metavar="FILE", help="official .pth or .safetensors file"
  )
  parser.add_argument("--which", default="last", help="last, best or a step (default: %(default)s)")
  parser.add_argument("--ema", action="store_true", help="take the averaged weights")
  parser.add_argument("--data", help="folder, TFDS name or directory (default: as in training)")
  parser.add_argument(
    "--source", choices=list(SOURCES), help="kind of the data (default: by itself)"
  )
  parser.add_argument("--split", help="split of the data set (default: as in training)")
  parser.add_argument(
    "--classes",
    choices=["all", "present"],
    help="where the data hold only some of ImageNet's classes: choose among all of them or among "
    "those present (default: all; of imagenet_a and imagenet_r, which are meant so, present)",
  )
  parser.add_argument("--data-dir", help="directory of all data sets that have names")
  parser.add_argument("--batch-size", type=int, help="over all devices (default: as in training)")
  parser.add_argument(
    "--precision", help="highest, default, bf16 or float64 (default: as in training)"
  )
  parser.add_argument(
    "--report", type=Path, metavar="DIR", help="write accuracy by class and the worst mistakes"
  )
  parser.add_argument("--output", type=Path, help="file for the result as JSON; null is not finite")
  group = parser.add_argument_group("attack", "changes the images against the model first")
  group.add_argument("--attack", choices=["fgsm", "pgd"], help="in one step, or in several")
  group.add_argument(
    "--attack-eps", type=float, metavar="N", help="largest change of a colour value of 0 to 255"
  )
  group.add_argument("--attack-step", type=float, metavar="N", help="its change in every step")
  group.add_argument("--attack-steps", type=int, metavar="N", help="how many steps")
  group.add_argument("--attack-seed", type=int, metavar="N", help="of the random start of pgd")
  add_process_flags(parser)
  options = parser.parse_args(arguments)
  if options.torch_checkpoint and not options.torch_checkpoint.is_file():
    parser.error(f"--torch-checkpoint {options.torch_checkpoint} is not a file; see --checkpoint")
  if options.output and options.output.exists() and not options.output.is_file():
    parser.error(f"--output {options.output} is a directory or a device, expected a file")
  for name in ("attack_eps", "attack_step", "attack_steps", "attack_seed"):
    if getattr(options, name) is not None and not options.attack:
      parser.error(f"--{name.replace('_', '-')} without --attack, expected --attack fgsm or pgd")
  return options
