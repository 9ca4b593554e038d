"""The formats in which a model leaves, by name.

A new one is a function and a line in `FORMATS`; the command and `export_model` then know it. The
function takes a `SavedModel`, a path where nothing is yet, and those of the options that its line
lists, by name. It writes all or nothing, and returns what is to be said of what it wrote. What it
refuses is a `UserError`.
"""

import importlib
from pathlib import Path
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
    writer: "module:function" of this package.
    ending: of the name of a file; "" for a directory.
    purpose: for a list of them.
    options: that the function takes.
  """

  writer: str
  ending: str
  purpose: str
  options: tuple[str, ...] = ()


FORMATS = {
  "safetensors": Format("state_dict:write", ".safetensors", "weights by their official names"),
  "torch": Format("state_dict:write", ".pth", "the same for PyTorch and the official code"),
  "pretrained": Format("pretrained:write", "", "a directory for the Hugging Face hub"),
  "stablehlo": Format("stablehlo:write", ".stablehlo", "a program for jax", options=("input",)),
  "onnx": Format(
    "onnx:write", ".onnx", "for ONNX Runtime and others", options=("input", "weights")
  ),
  "web": Format("web:write", "", "a folder for a browser", options=("weights", "runtime")),
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
    UserError: as `check_destination`, for an unknown option, what cannot be written, or a model
      that the format cannot hold.
  """
  path = check_destination(path, format)
  known = FORMATS[format].options
  if unknown := sorted(options.keys() - set(known)):
    expected = f"one of {', '.join(known)}" if known else "none"
    raise UserError(f"the format {format} has no option {unknown[0]!r}, expected {expected}")
  make_directory(path.parent)
  module, _, function = FORMATS[format].writer.partition(":")
  write = getattr(importlib.import_module(f"gfnet_jax.export.{module}"), function)
  try:
    return write(saved, path, **options)
  except OSError as error:
    reason = error.strerror or printable(error)
    raise UserError(f"cannot write {path} ({reason}); choose another place") from error


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
