"""What the commands share: their names, flags, one-line errors, exit codes.

Little is imported with this module, since only `run` is prepared for Ctrl-C.
"""

import argparse
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

from gfnet_jax.buckets import is_in_store
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

INTERRUPTED, READER_GONE = 128 + signal.SIGINT, 128 + signal.SIGPIPE  # as shells count
# What a system says of a disk, a name or a limit, wherever it is met: no bugs of ours.
SYSTEM_ERRORS = {
  *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE),
  *(errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE),
}
# The scripts of the repository that are commands of gfnet-jax as well.
SCRIPTS = {
  "train": "train.py",
  "eval": "eval.py",
  "convert": "convert_torch_weights.py",
  "predict": "tools/predict.py",
  "prepare": "tools/prepare_tfds.py",
  "plot": "tools/plot.py",
  "filters": "tools/visualize_filters.py",
}


def spell(command: str) -> str:
  """How to call a command of gfnet-jax, in the way in which this program was called.

  "python eval.py" from a script, else "gfnet-jax eval"; "python -m gfnet_jax eval" where the
  program need not be installed.
  """
  called = Path(sys.argv[0]).name
  from_script = called in {Path(script).name for script in SCRIPTS.values()}
  if from_script and command in SCRIPTS:
    return f"python {SCRIPTS[command]}"
  installed = not (from_script or called == "__main__.py")
  return f"gfnet-jax {command}" if installed else f"python -m gfnet_jax {command}"


def program(command: str) -> str:
  """The same as a program's name in its help and its errors: "eval.py", "gfnet-jax eval"."""
  return re.sub(r"^python (?!-m )", "", spell(command))


class ArgumentParser(argparse.ArgumentParser):
  """argparse with help that keeps its line breaks and errors of one line.

  "gfnet-jax COMMAND" in the description is shown as `spell` has it. Arguments of type Path are
  on a disk: a name such as gs://bucket/file is refused.
  """

  def __init__(self, *, description: str, **kwargs):
    super().__init__(
      description=re.sub(r"gfnet-jax ([a-z]+)", lambda found: spell(found[1]), description),
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
      **kwargs,
    )
    self.register("type", Path, _path_on_disk)

  def error(self, message: str) -> NoReturn:
    """Raises a `UserError` with the message, in place of the usage and exit of argparse."""
    raise UserError(f"{message} (see {self.prog} --help)")


def _path_on_disk(text: str) -> Path:
  """What argparse makes of an argument of type Path; Path alone would make a directory "gs:"."""
  if is_in_store(text):
    raise argparse.ArgumentTypeError(
      f"{text} is in a store, expected a name on a disk; copy it from there or to there yourself"
    )
  return Path(text)


def run(main: Callable[[list[str]], None]) -> int:
  """Calls main(arguments) and returns the exit code of the script.

  0 if it succeeds, 2 after one line on standard error for a mistake of the user or a
  refusal of the system, 130 if interrupted from the keyboard, 141 if nobody reads the
  output any more (`| head`). Other exceptions are bugs and pass with their traceback.
  """
  before = signal.getsignal(signal.SIGINT)
  if before is signal.default_int_handler:  # a shell's background jobs ignore it
    signal.signal(signal.SIGINT, _interrupt)
  sys.unraisablehook = _unraisable
  for stream in filter(None, (sys.stdout, sys.stderr)):
    stream.reconfigure(errors="backslashreplace")  # names that the locale cannot write
  try:
    _quieten_libraries()
    code, message = 0, ""
    main(sys.argv[1:])
  except UserError as error:
    code, message = 2, f"error: {printable(error, limit=4000)}"
  except KeyboardInterrupt:
    code, message = INTERRUPTED, "interrupted"
  except SystemExit as end:  # after --help
    code, message = end.code or 0, ""
  except BrokenPipeError:
    code, message = READER_GONE, ""
  except OSError as error:
    if error.errno not in SYSTEM_ERRORS:
      raise
    code, message = 2, _describe(error)
  finally:
    signal.signal(signal.SIGINT, before)
  return _finish_output(code, message)


def _quieten_libraries() -> None:
  """We report what matters of the libraries' errors."""
  import logging

  import absl.logging

  absl.logging.set_verbosity(absl.logging.FATAL)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # what Orbax leaves on a full disk


def _interrupt(number, frame) -> None:
  """Ctrl-C: an exception, but the end at once while something is imported.

  Nothing is lost then, and extension modules may crash when an exception comes through.
  """
  while frame is not None:
    if frame.f_code.co_filename.startswith("<frozen importlib"):
      os.write(2, b"interrupted\n")
      os._exit(INTERRUPTED)
    frame = frame.f_back
  raise KeyboardInterrupt


def _unraisable(unraisable) -> None:
  """What Python does with an error that nothing can catch, of a destructor or a callback.

  An interrupt is sent again. No word about the hundreds of errors that TensorStore
  leaves on a full disk: writes for which nobody waits any more report to a loop that is gone.
  """
  if issubclass(unraisable.exc_type, KeyboardInterrupt):
    # A moment later: during this function it would be dropped, too.
    main_thread = threading.main_thread().ident
    timer = threading.Timer(0.05, signal.pthread_kill, (main_thread, signal.SIGINT))
    timer.daemon = True
    timer.start()
  elif str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)


def _describe(error: OSError) -> str:
  name = printable(error.filename or "the output", limit=1000)
  return f"error: {name}: {error.strerror}; make room, raise the limit or choose another place"


def _finish_output(code: int, message: str) -> int:
  """Flushes standard output, prints a last message, and returns the exit code, 0 only if all went.

  What cannot be written is dropped: Python would try again at exit, and say so.
  """
  try:
    if sys.stdout:
      sys.stdout.flush()
  except BrokenPipeError:
    code, message = READER_GONE, ""
    _drop(sys.stdout)
  except OSError as error:
    code, message = code or 2, message or _describe(error)
    _drop(sys.stdout)
  try:
    if sys.stderr:
      sys.stderr.write(f"{message}\n" if message else "")
      sys.stderr.flush()
  except OSError:
    _drop(sys.stderr)
  return code


def _drop(stream: TextIO) -> None:
  os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def add_process_flags(parser: ArgumentParser) -> None:
  """The flags that name the processes of a run, for `distributed.initialize`."""
  group = parser.add_argument_group(
    "several processes", "TPU pods, SLURM and Open MPI need none of these"
  )
  group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
  group.add_argument("--num-processes", type=int, help="of the run")
  group.add_argument("--process-id", type=int, help="0, 1, ...: of this process")
