"""A folder that classifies images in a browser, from any static server."""

from pathlib import Path
from typing import Any

from gfnet_jax.data.imagenet import MEAN
from gfnet_jax.errors import UserError
from gfnet_jax.export.facts import channels, describe
from gfnet_jax.export.onnx import check_weights, to_onnx
from gfnet_jax.export.web_runtime import check_runtime, find_runtime
from gfnet_jax.files import new_directory, to_json
from gfnet_jax.inference.saved_model import SavedModel

PAGE = Path(__file__).with_name("page")
MODEL, WASM = "model.onnx", "ort-wasm-simd-threaded.wasm"


def check(path: Path, *, weights: str = "float32", runtime: Path | str | None = None) -> None:
  """Raises UserError as `check_weights` and `check_runtime`."""
  check_weights(weights)
  check_runtime(None if runtime is None else Path(runtime))


def write(
  saved: SavedModel, path: Path, *, weights: str = "float32", runtime: Path | str | None = None
) -> dict[str, Any]:
  """Writes a new folder: the page, the model as an ONNX file, and what runs it.

  Args:
    saved: the model, with classes.
    path: of the folder.
    weights: see `to_onnx`.
    runtime: see `find_runtime`.

  Raises:
    UserError: as those, and for a model without a head or of images that are not RGB.
  """
  if not saved.model.num_classes:
    raise UserError(
      "the model has no head (num_classes is 0), which a page that names classes needs; expected "
      "one with classes, or export it as onnx"
    )
  if channels(saved) != len(MEAN):
    raise UserError(
      f"the model takes images of {channels(saved)} channels, but a browser's have RGB; export it "
      "as onnx, with --input float32"
    )
  files = {MODEL: to_onnx(saved, weights=weights).SerializeToString()}
  for name, content in find_runtime(None if runtime is None else Path(runtime)).items():
    # Some servers do not say of .mjs that it is JavaScript, and browsers refuse it then.
    files[name.replace(".mjs", ".js")] = content
  files |= {file.name: file.read_bytes() for file in PAGE.iterdir()}
  facts = describe(saved, "uint8") | {
    "title": f"{saved.config.get('name', 'GFNet')}: what is in the image?",
    "files": [{"name": name, "bytes": len(files[name])} for name in (MODEL, WASM)],
  }
  files["model.json"] = to_json(facts).encode()
  with new_directory(path) as directory:
    for name, content in files.items():
      (directory / name).write_bytes(content)
  return {"bytes": sum(file.stat().st_size for file in path.iterdir())}
