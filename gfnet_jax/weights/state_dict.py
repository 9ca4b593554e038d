"""Official PyTorch weights into our models, and back (names: official gfnet.py)."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gfnet_jax.errors import UserError
from gfnet_jax.models.base import Network
from gfnet_jax.models.fit import Grid, Shape, describe_misfits, fit_to_grids, listed
from gfnet_jax.models.functional import split, update
from gfnet_jax.models.image_size import ImageSize
from gfnet_jax.models.products import sum_type
from gfnet_jax.models.stage import separate_blocks, stack_blocks
from gfnet_jax.models.variants import VARIANTS, create_model
from gfnet_jax.weights.channels import adapt_channels

StateDict = Mapping[str, np.ndarray]

POS_EMBED = "pos_embed"
FILTER = "filter.complex_weight"
HEAD = ("head.weight", "head.bias")
STEMS = ("patch_embed.proj.weight", "patch_embed.0.proj.weight")
# Stage, block, layer.
BLOCK_KEY = re.compile(r"blocks\.(?:(\d{1,4})\.)?(\d{1,4})\.([a-z]\w*)", re.ASCII)
OFFICIAL_MIXER = "global-filter"


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A tensor of the official state dict and the parameter that it corresponds to.

  The parameter is the tensor with its axes in the order `axes`, then reshaped.

  Attributes:
    key: the official name.
    name: ours, in a model whose blocks are not stacked.
    shape: of the tensor.
    axes: of the tensor, in the order of the parameter.
    param_shape: of the parameter.
  """

  key: str
  name: str
  shape: Shape
  axes: Shape
  param_shape: Shape

  def to_param(self, array: np.ndarray) -> np.ndarray:
    return array.transpose(self.axes).reshape(self.param_shape)

  def from_param(self, array: np.ndarray) -> np.ndarray:
    array = array.reshape([self.shape[axis] for axis in self.axes])
    # A copy: NumPy must not write into the memory of a parameter.
    return np.array(array.transpose(np.argsort(self.axes)), order="C")


def load_torch_state_dict(
  model: Network, state_dict: StateDict, *, keep_head: bool = False
) -> Network:
  """Fills a model, in place, with an official state dict.

  Position embedding and filters are resized if the model is for another image size
  (official main_gfnet.py, --finetune). An error leaves the model as it was.

  Args:
    model: the model to fill; may be abstract, as from `nnx.eval_shape`.
    state_dict: NumPy arrays of any float type by official key.
    keep_head: leave the model's head alone, whatever the state dict holds for it; so is that
      of a model without one.

  Returns:
    The same model.

  Raises:
    UserError: listing the keys that are missing, unexpected, mis-shaped or not floats; or
      if the model has a decoder, or its mixer is not the global filter.
  """
  skipped = HEAD if keep_head or not model.num_classes else ()
  source = {key: np.asarray(state_dict[key]) for key in state_dict if key not in skipped}
  grids = _grids(model, _token_grid(source))
  tensors = [tensor for tensor in _tensors(model, grids) if tensor.key not in skipped]
  misfits = describe_misfits(source, {tensor.key: tensor.shape for tensor in tensors})
  if misfits:
    raise UserError(f"the weights do not fit the model: {misfits}")

  params = {
    tensor.name: tensor.to_param(source[tensor.key].astype(model.dtype, copy=False))
    for tensor in tensors
  }
  params = stack_blocks(fit_to_grids(params, grids, model), split(model)[1])
  # Copies: JAX on a CPU would share the caller's memory.
  update(model, {name: jnp.array(array, copy=True) for name, array in params.items()})
  return model


def to_torch_state_dict(model: Network) -> dict[str, np.ndarray]:
  """Returns the weights, as NumPy arrays by official key, in the official order.

  They are float32, or float64 if the model is that.

  Raises:
    UserError: if the model has a decoder, or its mixer is not the global filter.
  """
  params = {name: np.asarray(value) for name, value in split(model)[1].items()}
  params = separate_blocks(params)
  return {t.key: t.from_param(params[t.name]) for t in _tensors(model, _grids(model))}


def model_from_torch(
  state_dict: StateDict,
  *,
  name: str | None = None,
  image_size: ImageSize | None = None,
  num_classes: int | None = None,
  in_dim: int | None = None,
  **overrides,
) -> tuple[Network, dict]:
  """Creates the model that a state dict belongs to, and fills it.

  Args:
    state_dict: NumPy arrays of any float type by official key.
    name: the variant; recognised by `recognise` if None.
    image_size: the size to resize the weights for, in pixels; the state dict's own if
      None.
    num_classes: outputs of the head; if they differ from the state dict's, or it has no
      head, the head gets fresh weights. 0 for a model without one.
    in_dim: channels of the images, see `adapt_channels`; the state dict's own if None.
    **overrides: arguments of `create_model` that leave the weights as they are, such as
      dtype.

  Returns:
    The model, and the arguments of `create_model` that describe it.

  Raises:
    UserError: as `recognise`, `adapt_channels` and `load_torch_state_dict`, and if there is
      no head and its `num_classes` is not given.
  """
  found = recognise(state_dict, name)
  config = found | dict(
    image_size=image_size or found["image_size"],
    num_classes=found["num_classes"] if num_classes is None else num_classes,
  )
  if in_dim is not None:
    total = sum_type(overrides.get("dtype", np.float32))
    stems = {k: adapt_channels(state_dict[k], in_dim, total) for k in STEMS if k in state_dict}
    state_dict = {**state_dict, **stems}
    config |= dict(in_dim=in_dim) if in_dim != 3 else {}
  has_head = any(key in state_dict for key in HEAD)
  if not has_head and num_classes is None:
    raise UserError(
      "the weights have no head (head.weight, head.bias), so that they know no classes; "
      "convert_torch_weights.py with --num-classes gives them a fresh one, to be trained, or with "
      "0 none"
    )
  new_head = not has_head or config["num_classes"] != found["num_classes"]
  # Abstract: random weights would be overwritten at once, and cost time and memory.
  model = nnx.eval_shape(lambda: create_model(**config, **overrides))
  load_torch_state_dict(model, state_dict, keep_head=new_head)
  if new_head and model.head is not None:
    # Compiled, so that only the head of the fresh model is computed.
    head = jax.jit(lambda: nnx.state(create_model(**config).head, nnx.Param))()
    nnx.update(model.head, head)
  return model, config


def recognise(state_dict: StateDict, name: str | None = None) -> dict:
  """The arguments of `create_model` for a state dict, from its names and shapes.

  Args:
    state_dict: NumPy arrays by official key.
    name: the variant, if it is known.

  Returns:
    `name`, `image_size` (a side, or (height, width) if they differ), `num_classes`, and
    `in_dim` unless it is 3.

  Raises:
    UserError: if no variant has these blocks and channels.
  """
  shapes = {key: np.shape(array) for key, array in state_dict.items()}
  name = name or _recognise_variant(shapes)
  stem = shapes.get(STEMS[0]) or shapes.get(STEMS[1])
  grid = _token_grid(state_dict)
  image_size, num_classes = 224, 1000  # if tensors are missing: loading reports it
  if grid and stem:
    height, width = (side * stem[-1] for side in grid)
    image_size = height if height == width else (height, width)
  if head := shapes.get("head.weight"):
    num_classes = head[0]
  channels = dict(in_dim=stem[1]) if stem and len(stem) == 4 and stem[1] != 3 else {}
  return dict(name=name, image_size=image_size, num_classes=num_classes) | channels


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
    f"channels in {len(shapes)} tensors ({listed(list(shapes))})"
  )


def _token_grid(state_dict: StateDict) -> tuple[int, int] | None:
  """(rows, columns) of the tokens in the first block, if the tensors tell."""
  first = state_dict.get(f"blocks.0.{FILTER}", state_dict.get(f"blocks.0.0.{FILTER}"))
  embedding = np.shape(state_dict.get(POS_EMBED))
  if len(embedding) != 3 or np.ndim(first) != 4 or 0 in np.shape(first):
    return None
  height, half_width = np.shape(first)[:2]
  width = embedding[1] // height
  consistent = height * width == embedding[1] and width // 2 + 1 == half_width
  return (height, width) if consistent else None


def _grids(model: Network, first: Grid | None = None) -> list[Grid]:
  """The token grid of every stage, if that of the first were another than the model's."""
  if model.trunk is not model:
    raise UserError(
      "the official format has no networks with a decoder, expected one that classifies images; "
      "training starts from official weights with config.init_checkpoint"
    )
  grids = [patch_embed.grid for patch_embed, _ in model.stages()]
  if first is None:
    return grids
  reductions = [grids[0][0] // rows for rows, _ in grids]
  return [(first[0] // reduction, first[1] // reduction) for reduction in reductions]


def _tensors(model: Network, grids: Sequence[Grid]) -> Iterator[_Tensor]:
  """Every tensor of a model's official state dict, in its order, for these token grids."""
  if model.mixer != OFFICIAL_MIXER:
    raise UserError(
      f"the model mixes tokens by {model.mixer!r}, but the official format knows only "
      f"{OFFICIAL_MIXER!r}; keep such a model as a checkpoint of gfnet_jax"
    )
  shapes = jax.eval_shape(separate_blocks, split(model)[1])
  shapes = {name: value.shape for name, value in shapes.items()}
  (rows, columns), dim = grids[0], shapes[POS_EMBED][-1]
  yield _Tensor(POS_EMBED, POS_EMBED, (1, rows * columns, dim), (0, 1, 2), (rows, columns, dim))
  for i, (patch_embed, _) in enumerate(model.stages()):
    name, patch = model.stage_name("patch_embed", i), patch_embed.patch_size
    shape = shapes[f"{name}.proj.kernel"]
    official = (shape[1], patch_embed.in_dim, patch, patch)
    yield _Tensor(f"{name}.proj.weight", f"{name}.proj.kernel", official, (2, 3, 1, 0), shape)
    yield _vector(f"{name}.proj.bias", shapes)
  for i, (_, blocks) in enumerate(model.stages()):
    for j in range(len(blocks)):
      yield from _block(f"{model.stage_name('blocks', i)}.{j}", grids[i], shapes)
  yield from _norm("norm", shapes)
  if model.head is not None:
    yield from _linear("head", shapes)


def _block(name: str, grid: Grid, shapes: Mapping[str, Shape]) -> Iterator[_Tensor]:
  if f"{name}.gamma" in shapes:
    yield _vector(f"{name}.gamma", shapes)
  yield from _norm(f"{name}.norm1", shapes)
  key = f"{name}.{FILTER}"
  rows, columns, dim = grid[0], grid[1] // 2 + 1, shapes[key][-1]
  yield _Tensor(key, key, (rows, columns, dim, 2), (3, 0, 1, 2), (2, rows, columns, dim))
  yield from _norm(f"{name}.norm2", shapes)
  yield from _linear(f"{name}.mlp.fc1", shapes)
  yield from _linear(f"{name}.mlp.fc2", shapes)


def _norm(name: str, shapes: Mapping[str, Shape]) -> Iterator[_Tensor]:
  shape = shapes[f"{name}.scale"]
  yield _Tensor(f"{name}.weight", f"{name}.scale", shape, (0,), shape)
  yield _vector(f"{name}.bias", shapes)


def _linear(name: str, shapes: Mapping[str, Shape]) -> Iterator[_Tensor]:
  shape = shapes[f"{name}.kernel"]
  yield _Tensor(f"{name}.weight", f"{name}.kernel", shape[::-1], (1, 0), shape)
  yield _vector(f"{name}.bias", shapes)


def _vector(name: str, shapes: Mapping[str, Shape]) -> _Tensor:
  return _Tensor(name, name, shapes[name], (0,), shapes[name])
