"""Official PyTorch weights into our models, and back (names: official gfnet.py)."""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gfnet_jax.errors import UserError
from gfnet_jax.models.gfnet import GFNet, GFNetPyramid, ImageSize
from gfnet_jax.models.layer_norm import LayerNorm
from gfnet_jax.models.layers import Block, PatchEmbed
from gfnet_jax.models.resize import resize_bicubic
from gfnet_jax.models.stage import Blocks, BlockStack
from gfnet_jax.models.variants import VARIANTS, create_model

Model = GFNet | GFNetPyramid
Shape = tuple[int, ...]
StateDict = Mapping[str, np.ndarray]

POS_EMBED = "pos_embed"
FILTER = "filter.complex_weight"
HEAD = ("head.weight", "head.bias")
BLOCK_KEY = re.compile(r"blocks\.(?:(\d+)\.)?(\d+)\.([a-z]\w*)")  # stage, block, layer
LISTED = 8  # keys of each kind that an error names


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A tensor of the official state dict and the parameter that it belongs to.

  The parameter is the tensor with its axes in the order `axes`, then reshaped.
  """

  key: str
  param: nnx.Param
  shape: Shape
  axes: Shape

  def to_param(self, array: np.ndarray) -> jax.Array:
    # A copy: JAX on a CPU would share the caller's memory.
    return jnp.array(array.transpose(self.axes).reshape(self.param.shape), copy=True)

  def from_param(self) -> np.ndarray:
    array = np.asarray(self.param[...]).reshape([self.shape[axis] for axis in self.axes])
    # A copy: NumPy may not write into the memory of a parameter.
    return np.array(array.transpose(np.argsort(self.axes)), order="C")


def load_torch_state_dict(model: Model, state_dict: StateDict, *, keep_head: bool = False) -> Model:
  """Fills a model, in place, with an official state dict.

  Position embedding and filters are resized if the model is for another image size
  (official main_gfnet.py, --finetune). An error leaves the model as it was.

  Args:
    model: to be filled; may be abstract, as from `nnx.eval_shape`.
    state_dict: NumPy arrays of any float type by official key.
    keep_head: leave the model's head alone, whatever the state dict holds for it.

  Returns:
    The same model.

  Raises:
    UserError: naming the keys that are missing, unexpected, mis-shaped or no floats.
  """
  skipped = HEAD if keep_head else ()
  source = {key: np.asarray(state_dict[key]) for key in state_dict if key not in skipped}
  # As a stack of blocks cannot be filled block by block, all are made anew and put in.
  stages = nnx.eval_shape(lambda model: [nnx.List(blocks) for blocks in _stages(model)], model)
  tensors = [tensor for tensor in _tensors(model, stages) if tensor.key not in skipped]
  model_grid = model.pos_embed.shape[:2]
  grid = _token_grid(source) or model_grid
  _check(source, {tensor.key: _shape_on(grid, model_grid, tensor) for tensor in tensors})

  for tensor in tensors:
    array = source[tensor.key].astype(np.float32, copy=False)
    if tensor.key == POS_EMBED:
      array = resize_bicubic(array.reshape(*grid, -1), model_grid, align_corners=False)
    elif tensor.key.endswith(FILTER):
      array = resize_bicubic(array, tensor.shape[:2], align_corners=True)
    tensor.param.set_value(tensor.to_param(array))
  for old, new in zip(_stages(model), stages, strict=True):
    nnx.update(old, nnx.state(BlockStack(new) if isinstance(old, BlockStack) else new))
  return model


def to_torch_state_dict(model: Model) -> dict[str, np.ndarray]:
  """The weights, as float32 NumPy arrays by official key, in the official order."""
  return {tensor.key: tensor.from_param() for tensor in _tensors(model, _stages(model))}


def model_from_torch(
  state_dict: StateDict,
  *,
  name: str | None = None,
  image_size: ImageSize | None = None,
  num_classes: int | None = None,
  **overrides,
) -> tuple[Model, dict]:
  """Creates the model that a state dict belongs to, filled with it.

  Args:
    state_dict: NumPy arrays of any float type by official key.
    name: the variant; recognised by `recognise` if None.
    image_size: to resize for; the state dict's own if None.
    num_classes: outputs of the head; if they differ from the state dict's, the head
      gets fresh weights.
    **overrides: arguments of `create_model` that do not change parameters, as dtype.

  Returns:
    The model, and the arguments of `create_model` that describe it.

  Raises:
    UserError: as `recognise` and `load_torch_state_dict`.
  """
  found = recognise(state_dict, name)
  config = dict(
    name=found["name"],
    image_size=image_size or found["image_size"],
    num_classes=num_classes or found["num_classes"],
  )
  new_head = config["num_classes"] != found["num_classes"]
  # Abstract: random weights, overwritten at once, would cost time and memory.
  model = nnx.eval_shape(lambda: create_model(**config, **overrides))
  load_torch_state_dict(model, state_dict, keep_head=new_head)
  if new_head:
    # Compiled, so that nothing but the head of a fresh model is computed.
    head = jax.jit(lambda: nnx.state(create_model(**config).head, nnx.Param))()
    nnx.update(model.head, head)
  return model, config


def recognise(state_dict: StateDict, name: str | None = None) -> dict:
  """The arguments of `create_model` for a state dict, from its names and shapes.

  Args:
    state_dict: NumPy arrays by official key.
    name: the variant, if it is known.

  Returns:
    `name`, `image_size` (a side, or (height, width) if they differ) and `num_classes`.

  Raises:
    UserError: if blocks and channels are those of none of the variants.
  """
  shapes = {key: np.shape(array) for key, array in state_dict.items()}
  name = name or _recognise_variant(shapes)
  stem = shapes.get("patch_embed.proj.weight") or shapes.get("patch_embed.0.proj.weight")
  grid = _token_grid(state_dict)
  image_size, num_classes = 224, 1000  # if tensors are missing, which loading will report
  if grid and stem:
    height, width = (side * stem[-1] for side in grid)
    image_size = height if height == width else (height, width)
  if head := shapes.get("head.weight"):
    num_classes = head[0]
  return dict(name=name, image_size=image_size, num_classes=num_classes)


def _recognise_variant(shapes: Mapping[str, Shape]) -> str:
  blocks: dict[int, set[int]] = {}  # indices, by stage
  channels: dict[int, int] = {}  # by stage
  for key, shape in shapes.items():
    if match := BLOCK_KEY.match(key):
      stage = int(match[1] or 0)
      blocks.setdefault(stage, set()).add(int(match[2]))
      if match[3].startswith("norm"):
        channels.setdefault(stage, math.prod(shape))
  depths = tuple(len(blocks[stage]) for stage in sorted(blocks))
  dims = tuple(channels[stage] for stage in sorted(channels))
  for name, (_, settings) in VARIANTS.items():
    variant_depths = settings.get("depths") or (settings["depth"],)
    variant_dims = settings.get("embed_dims") or (settings["embed_dim"],)
    if (variant_depths, variant_dims) == (depths, dims):
      return name
  raise UserError(
    f"the weights fit none of the variants {', '.join(VARIANTS)}: found {depths} blocks of {dims} "
    f"channels in {len(shapes)} tensors ({_listed(shapes)})"
  )


def _token_grid(state_dict: StateDict) -> tuple[int, int] | None:
  """(height, width) of the tokens in the first block, if the tensors tell it."""
  first = state_dict.get(f"blocks.0.{FILTER}", state_dict.get(f"blocks.0.0.{FILTER}"))
  embedding = np.shape(state_dict.get(POS_EMBED))
  if len(embedding) != 3 or np.ndim(first) != 4 or 0 in np.shape(first):
    return None
  height, half_width = np.shape(first)[:2]
  width = embedding[1] // height
  consistent = height * width == embedding[1] and width // 2 + 1 == half_width
  return (height, width) if consistent else None


def _shape_on(grid: Shape, model_grid: Shape, tensor: _Tensor) -> Shape:
  """The shape that a tensor of the model would have on another grid of tokens."""
  if tensor.key == POS_EMBED:
    return (1, grid[0] * grid[1], tensor.shape[-1])
  if tensor.key.endswith(FILTER):
    reduction = model_grid[0] // tensor.shape[0]  # of the stage
    return (grid[0] // reduction, grid[1] // reduction // 2 + 1, *tensor.shape[2:])
  return tensor.shape


def _check(source: StateDict, shapes: Mapping[str, Shape]) -> None:
  """Raises a UserError unless the source has exactly these keys and shapes, as floats."""
  misfits = {
    "missing": [key for key in shapes if key not in source],
    "unexpected": [key for key in source if key not in shapes],
    "mis-shaped": [
      f"{key} is {source[key].shape}, expected {shapes[key]}"
      for key in shapes
      if key in source and source[key].shape != shapes[key]
    ],
    "not of a float type": [
      f"{key} is {source[key].dtype}"
      for key in shapes
      if key in source and not jnp.issubdtype(source[key].dtype, jnp.floating)
    ],
  }
  found = [f"{len(keys)} {kind} ({_listed(keys)})" for kind, keys in misfits.items() if keys]
  if found:
    raise UserError("the weights do not fit the model: " + ", ".join(found))


def _listed(keys: Mapping | list) -> str:
  keys = list(map(str, keys))
  more = [f"and {len(keys) - LISTED} more"] if len(keys) > LISTED else []
  return ", ".join(keys[:LISTED] + more)


def _stages(model: Model) -> list[Blocks]:
  """The blocks of a model, by stage."""
  return [model.blocks] if isinstance(model, GFNet) else list(model.blocks)


def _tensors(model: Model, stages: Iterable[Iterable[Block]]) -> Iterator[_Tensor]:
  """Every tensor of the official state dict of a model with these blocks, in its order."""
  height, width, dim = model.pos_embed.shape
  yield _Tensor(POS_EMBED, model.pos_embed, (1, height * width, dim), (0, 1, 2))
  isotropic = isinstance(model, GFNet)
  for i, patch_embed in enumerate([model.patch_embed] if isotropic else model.patch_embed):
    yield from _patch_embed("patch_embed" if isotropic else f"patch_embed.{i}", patch_embed)
  for i, blocks in enumerate(stages):
    for j, block in enumerate(blocks):
      yield from _block(f"blocks.{j}" if isotropic else f"blocks.{i}.{j}", block)
  yield from _norm("norm", model.norm)
  yield from _linear("head", model.head)


def _patch_embed(prefix: str, module: PatchEmbed) -> Iterator[_Tensor]:
  kernel, patch = module.proj.kernel, module.patch_size
  shape = (kernel.shape[1], module.in_dim, patch, patch)
  yield _Tensor(f"{prefix}.proj.weight", kernel, shape, (2, 3, 1, 0))
  yield _vector(f"{prefix}.proj.bias", module.proj.bias)


def _block(prefix: str, block: Block) -> Iterator[_Tensor]:
  if block.has_layer_scale:
    yield _vector(f"{prefix}.gamma", block.gamma)
  yield from _norm(f"{prefix}.norm1", block.norm1)
  weight = block.filter.complex_weight
  yield _Tensor(f"{prefix}.{FILTER}", weight, (*weight.shape[1:], 2), (3, 0, 1, 2))
  yield from _norm(f"{prefix}.norm2", block.norm2)
  yield from _linear(f"{prefix}.mlp.fc1", block.mlp.fc1)
  yield from _linear(f"{prefix}.mlp.fc2", block.mlp.fc2)


def _norm(prefix: str, norm: LayerNorm) -> Iterator[_Tensor]:
  yield _vector(f"{prefix}.weight", norm.scale)
  yield _vector(f"{prefix}.bias", norm.bias)


def _linear(prefix: str, linear: nnx.Linear) -> Iterator[_Tensor]:
  yield _Tensor(f"{prefix}.weight", linear.kernel, linear.kernel.shape[::-1], (1, 0))
  yield _vector(f"{prefix}.bias", linear.bias)


def _vector(key: str, param: nnx.Param) -> _Tensor:
  return _Tensor(key, param, param.shape, (0,))
