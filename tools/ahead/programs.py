"""The programs of a config, traced for a mesh of chips that need not be there."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gfnet_jax.data.erasing_boxes import Erasing
from gfnet_jax.errors import UserError
from gfnet_jax.models.functional import Params, merge, split
from gfnet_jax.models.image_size import as_height_width
from gfnet_jax.models.mixers import GlobalFilter
from gfnet_jax.models.precision import matmul_precision
from gfnet_jax.sharding import check_batch_size, replicated, split_batch
from gfnet_jax.training.config_rules import check_config, check_groups
from gfnet_jax.training.program import build_program


def lower(
  program: str, config, mesh: Mesh, grid: tuple[int, int, int] | None
) -> jax.stages.Lowered:
  """Traces the training or evaluation step of a config, or its filter alone.

  Args:
    program: "train", "eval", "filter" or "filter-gradient".
    config: of `read_config`; its batch size is that of all chips together.
    mesh: of `make_mesh`, over the chips.
    grid: (height, width, channels) of the tokens, for the filter.

  Raises:
    UserError: for a config that cannot work, or is not known without its data or checkpoint.
  """
  check_config(config)
  if program == "eval":
    check_batch_size(config.data.eval_batch_size, 1, mesh)
  else:
    check_batch_size(config.data.batch_size, config.optimizer.accumulate_steps, mesh)
  with jax.set_mesh(mesh), matmul_precision(config.precision):
    if grid:
      return lower_filter(config, mesh, grid, gradient=program == "filter-gradient")
    return lower_step(config, mesh, program)


def lower_step(config, mesh: Mesh, which: str) -> jax.stages.Lowered:
  if not config.model.num_classes:
    raise UserError("the number of classes is that of the data; give --config.model.num_classes=N")
  if config.distillation.teacher:
    raise UserError(
      "the teacher's checkpoint would be loaded; set --config.distillation.teacher= to compile "
      "without it, and count its parameters besides"
    )
  check_groups(config, mesh)
  program = build_program(config, mesh)
  if which == "eval":
    return program.evaluate.lower(
      program.shapes.params, batch_shapes(config, config.data.eval_batch_size, mesh)
    )
  batch = batch_shapes(config, config.data.batch_size, mesh)
  return program.train.lower(program.shapes, program.teacher_params, batch, 0.0)


def batch_shapes(config, size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """What the input pipeline yields: uint8 images, labels, and boxes to erase."""

  def array(*shape: int, dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=split_batch(mesh))

  height, width = as_height_width(config.model.image_size)
  batch = {
    "image": array(height, width, 3, dtype=jnp.uint8),
    "label": array(dtype=jnp.int32),
    "bad": array(dtype=jnp.bool_),
  }
  erasing = Erasing(**config.erasing)
  if erasing.probability:
    batch["erase"] = array(erasing.max_count, 4, dtype=jnp.int32)
  return batch


def lower_filter(
  config, mesh: Mesh, grid: tuple[int, int, int], *, gradient: bool
) -> jax.stages.Lowered:
  """The filter of a batch of tokens, with the gradients of weight and tokens if asked for."""
  height, width, channels = grid
  settings = dict(backend=config.model.backend)
  if config.model.filter_precision is not None:
    settings["precision"] = config.model.filter_precision

  def make_filter() -> GlobalFilter:
    return GlobalFilter(channels, height, width, **settings, rngs=nnx.Rngs(0))

  structure, params = split(nnx.eval_shape(make_filter))

  def apply(params: Params, tokens: jax.Array) -> jax.Array:
    return merge(structure, params)(tokens)

  def apply_and_pull_back(params: Params, tokens: jax.Array, cotangents: jax.Array):
    filtered, pull_back = jax.vjp(apply, params, tokens)
    return filtered, pull_back(cotangents)

  rows = split_batch(mesh)
  size = (config.data.batch_size, *grid)
  tokens = jax.ShapeDtypeStruct(size, jnp.float32, sharding=rows)  # as norms return them
  params = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), params
  )
  if not gradient:
    return jax.jit(apply, out_shardings=rows).lower(params, tokens)
  out_shardings = (rows, (replicated(mesh), rows))
  cotangents = jax.eval_shape(apply, params, tokens)
  cotangents = jax.ShapeDtypeStruct(cotangents.shape, cotangents.dtype, sharding=rows)
  return jax.jit(apply_and_pull_back, out_shardings=out_shardings).lower(params, tokens, cotangents)
