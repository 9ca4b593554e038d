"""Writes image files as a TFDS data set in ArrayRecord, byte for byte.

From ImageNet's original tar files, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar:

  gfnet-jax prepare ~/downloads --output ~/tensorflow_datasets

From folders, SOURCE/SPLIT/CLASS/*.JPEG; the split `val` is called `validation`:

  gfnet-jax prepare ~/flowers --name flowers --output ~/tensorflow_datasets

Train on it with --config.data.name=NAME --config.data.data_dir=OUTPUT. It may be stopped at
any time: the same command resumes. At the end, everything is read again and compared.
"""

import os
import re
from pathlib import Path

from gfnet_jax.command_line import ArgumentParser, program
from gfnet_jax.errors import UserError

IMAGENET = "imagenet2012"


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog=program("prepare"), description=__doc__)
  parser.add_argument("source", type=Path, help="directory of the tar files or of the splits")
  parser.add_argument("--output", type=Path, required=True, help="directory of all TFDS data sets")
  parser.add_argument("--name", default=IMAGENET, help="of the data set (default: %(default)s)")
  parser.add_argument(
    "--processes", type=int, default=os.cpu_count(), help="that read and write (default: all cores)"
  )
  options = parser.parse_args(arguments)
  if not re.fullmatch(r"[a-z][a-z0-9_]*", options.name):
    parser.error(f"--name is {options.name!r}, expected a-z, 0-9 and _, and a letter first")
  if options.processes < 1:
    parser.error(f"--processes is {options.processes}, expected at least 1")

  # Importing TFDS takes seconds that --help and typing errors need not wait for.
  from gfnet_jax.data.prepare import splits
  from gfnet_jax.data.prepare.write import prepare

  if not options.source.is_dir():
    raise UserError(f"directory {options.source} not found")
  registered = splits.find_registered(options.name)
  version = registered.version if registered else "1.0.0"
  directory = options.output / options.name / version
  paths = splits.find_splits(options.source)
  splits.check_not_complete(directory, paths)
  classes, images = splits.list_splits(paths, registered.classes if registered else None)
  if splits.is_imagenet(options.name, paths):
    splits.check_imagenet(options.source, images)
  for split, entries in images.items():
    print(f"{split}: {len(entries)} images")
  prepare(directory, options.name, version, classes, images, processes=options.processes)
  print(f"Done: {directory}")
