"""The parameters with which a run begins: fresh ones, or those of a checkpoint."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gfnet_jax.console import say
from gfnet_jax.distributed import together
from gfnet_jax.errors import UserError
from gfnet_jax.inference.saved_model import SavedModel, load_model
from gfnet_jax.models.base import Network
from gfnet_jax.models.fit import carry_params
from gfnet_jax.models.functional import Params, split
from gfnet_jax.sharding import replicate, replicated
from gfnet_jax.text import printable


def initial_params(
  make_model: Callable[[], nnx.Module], init_checkpoint: str, mesh: Mesh
) -> Params:
  """Fresh parameters, or those of a checkpoint fitted to the model.

  Position embedding and mixers are resized to the model's image size as `carry_params` says; the
  head stays fresh if the checkpoint has another number of classes. A line says what was loaded and
  changed.

  Args:
    make_model: creates the model with fresh parameters.
    init_checkpoint: what to load, see `load_model`; empty for fresh parameters.
    mesh: over which the parameters are replicated.

  Raises:
    UserError: in every process, if one finds no checkpoint or its blocks are not the model's.
  """
  fresh = jax.jit(lambda: split(make_model())[1], out_shardings=replicated(mesh))()
  if not init_checkpoint:
    return fresh
  model = nnx.eval_shape(make_model)
  # Parameters are of one type in all others, whatever the checkpoint's run was computed in.
  precision = "float64" if model.dtype == jnp.float64 else "default"

  def fitted() -> tuple[SavedModel, Params]:
    saved = load_model(init_checkpoint, precision=precision)
    try:
      return saved, carry_params(saved.model, model, fresh)
    except UserError as error:
      name = saved.config["name"]
      raise UserError(
        f"init_checkpoint {init_checkpoint}, a {name}, is not the network of config.model: {error}"
      ) from error

  saved, params = together(fitted)
  say(f"Initial weights: {printable(init_checkpoint)}, {describe_weights(saved, model)}")
  return replicate(params, mesh)


def describe_weights(saved: SavedModel, model: Network) -> str:
  """What weights a model begins with and what was done to them, as a part of a line."""
  parts = [f"a {saved.config['name']}" + (f" of step {saved.step}" if saved.step else "")]
  before, after = ("x".join(map(str, m.image_size)) for m in (saved.model, model))
  if before != after:
    parts.append(f"resized from {before} to {after} pixels")
  before, after = (m.num_classes for m in (saved.model, model))
  parts.append(
    "with its head" if before == after else f"with a new head: {after} classes instead of {before}"
  )
  return ", ".join(parts)


def load_teacher(
  checkpoint: str,
  num_classes: int,
  image_size: tuple[int, int],
  mesh: Mesh,
  precision: str | None = None,
) -> tuple[nnx.GraphDef | None, Params]:
  """The model to distil from, or (None, {}) if no checkpoint is named.

  The precision is that of `load_model`.

  Raises:
    UserError: if its classes or its image size are not the student's.
  """
  if not checkpoint:
    return None, {}
  model = together(lambda: load_model(checkpoint, precision=precision)).model
  found, expected = model.num_classes, num_classes
  if (found, model.image_size) != (expected, image_size):
    raise UserError(
      f"the teacher {checkpoint} has {found} classes at {model.image_size} pixels, expected "
      f"the student's {expected} at {image_size}"
    )
  structure, params = split(model)
  return structure, replicate(params, mesh)
