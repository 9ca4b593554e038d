"""Configs from Python files, with fields overridden by flags."""

import contextlib
import difflib
import inspect
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

PACKAGE = Path(__file__).parent
# The ready-made configs: within the package where it is installed, else beside it.
CONFIGS = next(filter(Path.is_dir, (PACKAGE / "configs", PACKAGE.parent / "configs")))
LARGEST_CONFIG = 2**20  # bytes


def ready_made() -> dict[str, Path]:
  """The files of the ready-made configs by their names, such as digits."""
  return {path.stem: path for path in sorted(CONFIGS.glob("*.py"))}


def load_config(specifier: str) -> ml_collections.ConfigDict:
  """Loads a config, to be changed and given to `train`.

  Args:
    specifier: name of a ready-made config ("digits"), or path of a Python file with
      `get_config()`; "imagenet:gfnet-xs" stands for `get_config("gfnet-xs")`.

  Raises:
    UserError: for a name or file without a config.
  """
  return read_config(specifier, [])


def read_config(specifier: str, overrides: list[str]) -> ml_collections.ConfigDict:
  """Loads a config file and applies `--config.field=value` overrides.

  Args:
    specifier: as for `load_config`.
    overrides: command-line arguments, of which all must be overrides.

  Raises:
    UserError: for a file without a config, an unknown field, a value of another type,
      or an argument that is no override.
  """
  config = _load_config(specifier)
  for override in overrides:
    if found := re.match(r"--?(no)?config\.([^=]*)", override):
      _check_field(found[2], config, specifier)
  values = flags.FlagValues()
  original, sys.argv = sys.argv, ["", *overrides]  # config_flags reads overrides from here
  try:
    config_flags.DEFINE_config_dict("config", config, flag_values=values)
    rest = values(sys.argv)[1:]
  except flags.UnrecognizedFlagError as error:
    raise UserError(f"unknown flag --{printable(error.flagname)} (see --help)") from error
  except Exception as error:  # of parsing a value, which is Python: any kind
    raise UserError(f"{_one_line(error)}; see {specifier}") from error
  finally:
    sys.argv = original
  if rest:
    raise UserError(f"unexpected argument {printable(rest[0])!r} (see --help)")
  return config


def default_workdir(config: ml_collections.ConfigDict) -> Path:
  """runs/NAME, see `run_name`."""
  return Path("runs") / run_name(config)


def run_name(config: ml_collections.ConfigDict) -> str:
  """The name of the config, in which {data} stands for the last part of `data.name`."""
  path = os.path.abspath(os.path.expanduser(config.data.name))  # noqa: PTH100, PTH111 (any text)
  data = Path(path).name or "root"
  return config.name.replace("{data}", data)


def _check_field(name: str, config: ml_collections.ConfigDict, specifier: str) -> None:
  """Raises UserError unless the config has a field of this dotted name."""
  field = config
  for part in name.partition("[")[0].split("."):  # an index into a tuple may follow
    if not isinstance(field, ml_collections.ConfigDict) or part not in field:
      known = {known.rpartition(".")[2]: known for known in _field_names(config)}
      close = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
      hint = f"did you mean {known[close[0]]}? " if close else ""
      raise UserError(f"unknown config field {printable(name)}; {hint}see {specifier}")
    field = field[part]
  if isinstance(field, ml_collections.ConfigDict):
    fields = ", ".join(f"{name}.{inner}" for inner in field)
    raise UserError(f"{name} is a section of the config; set one of its fields: {fields}")


def _field_names(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _field_names(value, f"{prefix}{name}.")
    else:
      yield prefix + name


def _load_config(specifier: str) -> ml_collections.ConfigDict:
  name, colon, argument = specifier.partition(":")
  path = _find_file(name)
  with _importable_configs(Path(path)):
    get_config = _run_file(path).get("get_config")
    if not callable(get_config):
      raise UserError(f"config file {path} has no function get_config()")
    try:
      if colon and not inspect.signature(get_config).parameters:
        raise UserError(f"it takes no argument, found {argument!r} after the colon")
      config = get_config(argument) if colon else get_config()
    except (Exception, SystemExit) as error:  # the file is the user's: any kind
      raise UserError(f"config {specifier}: {_where(error, path)}{_one_line(error)}") from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(
      f"get_config() of config file {path} returns {type(config).__name__}, expected a "
      "ml_collections.ConfigDict; begin with configs/default.py"
    )
  return config


def _find_file(name: str) -> str:
  """The path of a config file; "digits" and "configs/digits.py" are ready-made, from anywhere."""
  path = Path(name)
  if not path.is_file() and path.parent in (Path(), Path("configs")) and path.suffix in ("", ".py"):
    return str(ready_made().get(path.stem, name))
  return name


@contextlib.contextmanager
def _importable_configs(path: Path) -> Iterator[None]:
  """Lets a config file import others: `from configs import default`, whatever is installed.

  Those beside it come first if its directory is called configs. The program's own modules of
  that name are put back.
  """
  beside = [path.absolute().parent] if path.absolute().parent.name == "configs" else []
  package = types.ModuleType("configs")
  package.__path__ = list(map(str, (*beside, CONFIGS)))
  before = _take_out_configs()
  sys.modules["configs"] = package
  try:
    yield
  finally:
    _take_out_configs()
    sys.modules.update(before)


def _take_out_configs() -> dict[str, types.ModuleType]:
  names = [name for name in sys.modules if name.partition(".")[0] == "configs"]
  return {name: sys.modules.pop(name) for name in names}


def _run_file(path: str) -> dict[str, Any]:
  """The names that a Python file defines.

  Raises:
    UserError: if it is none, or raises an exception.
  """
  if path.endswith(".json"):
    raise UserError(
      f"config file {path} is JSON, expected a Python file with get_config(); to continue the "
      "run that wrote it, repeat the command that began it"
    )
  if Path(path).is_dir():
    raise UserError(f"config file {path} is a directory; {_known(path)}")
  if not Path(path).is_file():
    raise UserError(f"config file {path} not found; {_known(path)}")
  try:
    with Path(path).open("rb") as file:
      source = file.read(LARGEST_CONFIG + 1)
  except OSError as error:
    raise UserError(f"cannot read config file {path} ({error.strerror})") from error
  if len(source) > LARGEST_CONFIG:
    raise UserError(f"config file {path} is larger than {LARGEST_CONFIG} bytes: no config")
  try:
    code = compile(source, path, "exec", dont_inherit=True)
  except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
    raise UserError(f"config file {path} is not a Python file ({_one_line(error)})") from error
  names = {"__name__": Path(path).stem, "__file__": path}
  try:
    exec(code, names)
  except (Exception, SystemExit) as error:  # the file is the user's: any kind
    raise UserError(f"config file {path}: {_where(error, path)}{_one_line(error)}") from error
  return names


def _known(path: str) -> str:
  names = ready_made()
  close = difflib.get_close_matches(Path(path).stem, names, n=1)
  hint = f"did you mean {close[0]}? " if close else ""
  return f"{hint}expected a Python file or one of {', '.join(names)}"


def _where(error: BaseException, path: str) -> str:
  """The last line of a file that led to an exception which is no message of ours."""
  if isinstance(error, ValueError):
    return ""
  lines = [
    frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path
  ]
  return f"line {lines[-1]}: {type(error).__name__}: " if lines else f"{type(error).__name__}: "


def _one_line(error: BaseException) -> str:
  return printable(" ".join(str(error).split()) or type(error).__name__, limit=300)
