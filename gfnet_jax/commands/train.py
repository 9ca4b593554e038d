"""Trains a Global Filter Network.

With no arguments, trains a small network on handwritten digits that need no download:

  gfnet-jax train

Any config file, or the name of a ready-made one (gfnet-jax configs lists them), with any
field overridden:

  gfnet-jax train --config digits --workdir runs/wide --config.model.embed_dim=96
  gfnet-jax train --config imagenet:gfnet-xs --config.data.data_dir=DIR

The work directory receives config.json, metrics.jsonl, performance.jsonl, TensorBoard
events and checkpoints. The same command again continues a run that was interrupted.
"""

import shlex

from gfnet_jax.command_line import ArgumentParser, add_process_flags, program, spell


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog=program("train"), description=__doc__)
  parser.add_argument(
    "--config",
    default="configs/digits.py",
    metavar="FILE[:ARGUMENT]",
    help="config file, or the name of one (default: %(default)s); --config.FIELD=VALUE overrides "
    "one of its fields",
  )
  parser.add_argument(
    "--workdir",
    help="work directory, such as runs/mine or gs://bucket/mine (default: runs/ and the config's "
    "name)",
  )
  add_process_flags(parser)
  options, overrides = parser.parse_known_args(arguments)
  from gfnet_jax import startup
  from gfnet_jax.config_files import default_workdir, read_config

  config = read_config(options.config, overrides)
  startup.start()
  import gfnet_jax
  from gfnet_jax import distributed
  from gfnet_jax.console import say

  distributed.initialize(options.coordinator, options.num_processes, options.process_id)
  startup.check_devices()
  workdir = default_workdir(config) if options.workdir is None else options.workdir
  if gfnet_jax.train(config, workdir):
    name = shlex.quote(str(workdir))
    say(f"Done. Evaluate it again with: {spell('eval')} --checkpoint {name}")
    segments = config.model.get("decoder")
    what, flag = ("Segment", " --segment masks") if segments else ("Classify", "")
    say(f"{what} an image with: {spell('predict')} {name} IMAGE{flag}")
