"""Models as StableHLO: one program for CPUs, GPUs and TPUs, which jax alone can run."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

import gfnet_jax
from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.errors import UserError
from gfnet_jax.export.facts import channels, check_images, check_input, describe
from gfnet_jax.files import open_atomically, to_json, write_atomically
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.precision import matmul_precision

PLATFORMS = ("cpu", "cuda", "tpu")


def check(path: Path, *, input: str = "uint8") -> None:
  """Raises UserError for an unknown input, a file of facts that is there already, or no CPU."""
  check_input(input)
  _check_cpu()
  if (beside := _beside(path)).exists():
    raise UserError(f"{beside} exists already; remove it or choose another name")


def write(saved: SavedModel, path: Path, *, input: str = "uint8") -> dict[str, Any]:
  """Writes a program, see `to_stablehlo`, and beside it PATH.json, with what `describe` says.

  That holds "sha256" of the program, too, "platforms", and the versions that wrote it.

  Raises:
    UserError: as `to_stablehlo`.
  """
  beside = _beside(path)
  program = to_stablehlo(saved, input=input)
  facts = describe(saved, input) | {
    "platforms": PLATFORMS,
    "sha256": hashlib.sha256(program).hexdigest(),
    "written_by": {"gfnet_jax": gfnet_jax.__version__, "jax": jax.__version__},
  }
  write_atomically(beside, to_json(facts, indent=2) + "\n")
  try:
    with open_atomically(path) as file:
      file.write(program)
  except BaseException:  # an interruption, too: all or nothing
    beside.unlink(missing_ok=True)
    raise
  return {"input": input, "platforms": ", ".join(PLATFORMS), "bytes": len(program)}


def to_stablehlo(saved: SavedModel, *, input: str = "uint8") -> bytes:
  """A model as a program for any batch size, its weights inside, by `jax.export`.

  `jax.export.deserialize(program).call` maps images (batch, height, width, channels) to logits
  (batch, classes) or, of a model without a head, to features. It computes as the model does on a
  CPU, wherever it was exported and runs; the filter transforms by the backend `separable` unless
  the model has another one that is neither "auto" nor "fused".

  Args:
    saved: the model.
    input: see `check_images`.

  Raises:
    UserError: as `check_images`, for a model in float64, or where jax may not use the CPU.
  """
  check_images(saved, input)
  _check_cpu()
  if saved.model.dtype == jnp.float64:
    raise UserError(
      "the model is in float64, in which jax computes only where it is told so; export it with "
      "--precision default or highest"
    )
  (batch,) = export.symbolic_shape("batch")
  shape = (batch, *saved.model.image_size, channels(saved))
  images = jax.ShapeDtypeStruct(shape, input)
  # The same from any machine: in the forms for a CPU, without the paths of source files.
  with jax.default_device("cpu"), _no_locations(), matmul_precision(saved.precision):
    exported = export.export(jax.jit(_network(saved, input)), platforms=PLATFORMS)(images)
  return bytes(exported.serialize())


def _beside(path: Path) -> Path:
  """The file of facts beside a program."""
  return path.with_name(f"{path.name}.json")


def _check_cpu() -> None:
  """Raises UserError if JAX_PLATFORMS leaves out the CPU, for which the program is traced."""
  try:
    jax.devices("cpu")
  except RuntimeError as error:
    raise UserError(
      f"stablehlo is written on the CPU, but JAX_PLATFORMS is {jax.config.jax_platforms!r}; add "
      "cpu to it, behind a comma, or unset it"
    ) from error


def _network(saved: SavedModel, input: str) -> Callable[[jax.Array], jax.Array]:
  """The function to be exported; its weights are constants."""
  structure, params = split(_portable(saved.model))
  params = {name: np.asarray(array) for name, array in params.items()}

  def network(images: jax.Array) -> jax.Array:
    return merge(structure, params)(normalize(images) if input == "uint8" else images)

  return network


@contextlib.contextmanager
def _no_locations() -> Iterator[None]:
  """Leaves out of programs in which line of which file an operation was written."""
  name = "jax_traceback_in_locations_limit"
  before = jax.config.jax_traceback_in_locations_limit
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)


def _portable(model: nnx.Module) -> nnx.Module:
  """The same model with a backend that every platform runs well, for batches of unknown size."""
  if dict(model.settings)["backend"] not in ("auto", "fused"):
    return model
  target = nnx.eval_shape(lambda: model.fresh(backend="separable"))
  return merge(split(target)[0], split(model)[1])
