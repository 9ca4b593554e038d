"""What the scripts share: configs from flags, one-line errors, exit codes."""

import argparse
import inspect
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

ROOT = Path(__file__).parent.parent  # holds configs/


class ArgumentParser(argparse.ArgumentParser):
  """argparse with help that keeps its line breaks and errors of one line."""

  def __init__(self, **kwargs):
    super().__init__(
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs
    )

  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message} (see {self.prog} --help)")


def run(main: Callable[[list[str]], None]) -> int:
  """Calls main(arguments) and returns the exit code of the script.

  0 if it succeeds, 2 after one line on standard error for a mistake of the user, 130
  if interrupted from the keyboard. Other exceptions are bugs and pass with their
  traceback.
  """
  logging.set_verbosity(logging.FATAL)  # we report what matters of the libraries' errors
  sys.unraisablehook = _deliver_interrupts
  try:
    main(sys.argv[1:])
  except UserError as error:
    print(f"error: {printable(error, limit=4000)}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 130
  return 0


def _deliver_interrupts(unraisable) -> None:
  """Sends an interrupt again that Python dropped because it came during a destructor."""
  if issubclass(unraisable.exc_type, KeyboardInterrupt):
    # A moment later: during this function it would be dropped, too.
    main_thread = threading.main_thread().ident
    timer = threading.Timer(0.05, signal.pthread_kill, (main_thread, signal.SIGINT))
    timer.daemon = True
    timer.start()
  else:
    sys.__unraisablehook__(unraisable)


def add_process_flags(parser: ArgumentParser) -> None:
  """The flags that name the processes of a run, for `distributed.initialize`."""
  group = parser.add_argument_group(
    "several processes", "TPU pods, SLURM and Open MPI need none of these"
  )
  group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
  group.add_argument("--num-processes", type=int, help="of the run")
  group.add_argument("--process-id", type=int, help="0, 1, ...: of this process")


def read_config(specifier: str, overrides: list[str]) -> ml_collections.ConfigDict:
  """Loads a config file and applies `--config.field=value` overrides.

  Args:
    specifier: path of a Python file with `get_config()`, or "path:argument" for
      `get_config(argument)`.
    overrides: command-line arguments, of which all must be overrides.

  Raises:
    UserError: for a file without a config, an unknown field, a value of another type,
      or an argument that is no override.
  """
  config = _load_config(specifier)
  values = flags.FlagValues()
  original, sys.argv = sys.argv, ["", *overrides]  # config_flags reads overrides from here
  try:
    config_flags.DEFINE_config_dict("config", config, flag_values=values)
    rest = values(sys.argv)[1:]
  except (KeyError, AttributeError) as error:
    field = " ".join(
      str(error.args[0]).strip("\"'").replace("\\n", " ").replace("\\'", "'").split()
    )
    given = (override.partition("=")[0].removeprefix("--config.") for override in overrides)
    field = next((name for name in given if name.split(".")[-1] == field), field)
    raise UserError(f"unknown config field {field}; see {specifier}") from error
  except flags.UnrecognizedFlagError as error:
    raise UserError(f"unknown flag --{error.flagname} (see --help)") from error
  except (flags.Error, TypeError, ValueError) as error:
    raise UserError(f"{' '.join(str(error).split())}; see {specifier}") from error
  finally:
    sys.argv = original
  if rest:
    raise UserError(f"unexpected argument {rest[0]!r} (see --help)")
  return config


def _load_config(specifier: str) -> ml_collections.ConfigDict:
  path, colon, argument = specifier.partition(":")
  if not Path(path).is_file() and (ROOT / path).is_file():
    path = str(ROOT / path)  # called from another directory
  if not Path(path).is_file():
    raise UserError(f"config file {path} not found; the ready-made ones are in configs/")
  get_config = runpy.run_path(path).get("get_config")
  if get_config is None:
    raise UserError(f"config file {path} has no function get_config()")
  if colon and not inspect.signature(get_config).parameters:
    raise UserError(f"config file {path} takes no argument, found {argument!r} after the colon")
  try:
    return get_config(argument) if colon else get_config()
  except (KeyError, ValueError) as error:
    raise UserError(f"config {specifier}: {error}") from error
