"""The formats in which a model leaves, by name.

A new one is a module and a line in `FORMATS`; the command and `export_model` then know it. The
module has two functions, which take a path where nothing is yet and, by name, those of the options
that the line lists. `check(path, **options)` refuses what can be refused before there is a model,
such as an unknown value, or if a package is not installed. `write(saved, path, **options)` takes a
`SavedModel` as well, writes all or nothing, and returns what is to be said of what it wrote. What
they refuse is a `UserError`.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from gfnet_jax.buckets import BucketPath, as_directory
from gfnet_jax.errors import UserError
from gfnet_jax.files import make_directory
from gfnet_jax.names import look_up
from gfnet_jax.text import printable

if TYPE_CHECKING:  # jax comes with it, for which --help need not wait
  from gfnet_jax.inference.saved_model import SavedModel


class Format(NamedTuple):
  """A format.

  Attributes:
    module: of this package, with `check` and `write`.
    ending: of the name of a file; "" for a directory.
    purpose: for a list of them.
    options: that they take.
  """

  module: str
  ending: str
  purpose: str
  options: tuple[str, ...] = ()


FORMATS = {
  "safetensors": Format("state_dict", ".safetensors", "weights by their official names"),
  "torch": Format("state_dict", ".pth", "the same for PyTorch and the official code"),
  "pretrained": Format("pretrained", "", "a directory for the Hugging Face hub"),
  "stablehlo": Format("stablehlo", ".stablehlo", "a program for jax", options=("input",)),
  "onnx": Format("onnx", ".onnx", "for ONNX Runtime and others", options=("input", "weights")),
  "web": Format("web", "", "a folder for a browser", options=("weights", "runtime")),
}


def export_model(
  saved: "SavedModel", path: Path | str, format: str, **options: Any
) -> dict[str, Any]:
  """Writes a model in a format that other programs read.

  Args:
    saved: the model, of `load_model`.
    path: a new file, or for some formats a new directory.
    format: a name in `FORMATS`.
    **options: those of the format.

  Returns:
    What is to be said of it, by name: "bytes", its size, and what else the format has.

  Raises:
    UserError: as `check_export`, for what is not a `SavedModel`, a model that segments images or
      that the format cannot hold, or what cannot be written.
  """
  path = check_export(path, format, **options)
  _check_model(saved)
  make_directory(path.parent)
  try:
    return _module(format).write(saved, path, **options)
  except OSError as error:
    reason = error.strerror or printable(error)
    raise UserError(f"cannot write {path} ({reason}); choose another place") from error


def check_export(path: Path | str, format: str, **options: Any) -> Path:
  """Checks what can be checked of an export before there is a model; returns the path.

  Raises:
    UserError: as `check_destination`, for an unknown option, a bad value of one, or if the format
      needs what is not installed.
  """
  path = check_destination(path, format)
  known = FORMATS[format].options
  if unknown := sorted(options.keys() - set(known)):
    expected = f"one of {', '.join(known)}" if known else "none"
    raise UserError(f"the format {format} has no option {unknown[0]!r}, expected {expected}")
  _module(format).check(path, **options)
  return path


def _module(format: str) -> ModuleType:
  return importlib.import_module(f"gfnet_jax.export.{FORMATS[format].module}")


def _check_model(saved: "SavedModel") -> None:
  """Raises UserError for another object, or a model that no format is made for."""
  from gfnet_jax.inference.saved_model import SavedModel

  if not isinstance(saved, SavedModel):
    raise UserError(
      f"got an object of type {type(saved).__name__}, expected a SavedModel; take what load_model "
      "returns, or SavedModel(model, config) with the arguments of create_model"
    )
  if saved.config.get("decoder"):
    raise UserError(
      "the model segments images, expected one that classifies them, as no format of export is "
      "made for others; keep its checkpoint, which gfnet-jax predict --segment takes"
    )


def check_destination(path: Path | str, format: str) -> Path:
  """The path where a model of a format may be written.

  Raises:
    UserError: for an unknown format, a name of another ending, of what is there already, or in a
      store.
  """
  ending = look_up("format", format, FORMATS).ending
  path = as_directory(path)
  if isinstance(path, BucketPath):
    raise UserError(f"{path} is in a store; export to a disk, and copy it from there")
  if ending and path.suffix != ending:
    raise UserError(
      f"{path} does not end in {ending}, as files of the format {format} do; choose "
      f"{path.stem or 'model'}{ending}, for example"
    )
  if path.exists():
    raise UserError(f"{path} exists already; remove it or choose another name")
  return path
