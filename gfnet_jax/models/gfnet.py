"""GFNet and its hierarchical form (paper, sections 3.3 and 3.4; official gfnet.py)."""

import numbers
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from gfnet_jax.errors import UserError
from gfnet_jax.models.arguments import check_dtype, check_rngs
from gfnet_jax.models.base import Network
from gfnet_jax.models.dense import Linear
from gfnet_jax.models.image_size import ImageSize, as_height_width, divide
from gfnet_jax.models.initializers import normal_init
from gfnet_jax.models.layer_norm import LayerNorm
from gfnet_jax.models.layers import Block, PatchEmbed
from gfnet_jax.models.products import sum_type
from gfnet_jax.models.resize import check_rule
from gfnet_jax.models.sizes import as_size, as_sizes, as_sizes_per_stage
from gfnet_jax.models.stage import BlockList, Blocks, BlockStack


class GFNet(Network):
  """The isotropic network: one patch embedding, then blocks of equal size.

  Args:
    image_size: side of the images, or (height, width), in pixels.
    patch_size: side of a patch, in pixels; must divide the height and the width.
    embed_dim: channels of the tokens.
    depth: number of blocks.
    num_classes: outputs of the head; 0 for a model without one, which returns features.
    in_dim: channels of the images.
    mlp_ratio: hidden channels of an MLP per channel.
    drop_path_rate: stochastic depth of the last block; grows linearly from 0.
    mixer: what mixes the tokens of a block: a name in `mixers.MIXERS`.
    backend: how it transforms: "auto" or a name in `fourier_backends.BACKENDS`.
    filter_precision: of the filter's transforms, see `precision.filter_precision`; None for
      the mixer's own, "high".
    dynamic_size: the rule by which images of another size are answered, see `fit.resize`; None
      refuses them.
    remat: computes every block again in the backward pass instead of keeping its
      intermediate values: less memory, more time.
    scan: holds the blocks of a stage as one `BlockStack`: compiles faster, but gives the
      parameters other names and shapes.
    dtype: type of the matrix products; parameters and results stay float32, or everything is
      float64 if it is that.
    rngs: source of the initial weights.

  Raises:
    UserError: if the patches do not divide the image, a size is no positive integer, a name
      is unknown, or rngs has no parameters.
  """

  def __init__(
    self,
    image_size: ImageSize = 224,
    patch_size: int = 16,
    embed_dim: int = 384,
    depth: int = 12,
    num_classes: int = 1000,
    *,
    in_dim: int = 3,
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.0,
    mixer: str = "global-filter",
    backend: str = "auto",
    filter_precision: str | None = None,
    dynamic_size: str | None = None,
    remat: bool = False,
    scan: bool = False,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    image_size = as_height_width(image_size)
    patch_size, embed_dim, depth, in_dim = as_sizes(
      patch_size=patch_size, embed_dim=embed_dim, depth=depth, in_dim=in_dim
    )
    num_classes = _check(num_classes, dynamic_size, dtype, rngs)
    self._remember(locals())
    self.image_size, self.mixer, self.remat = image_size, mixer, remat
    self.dynamic_size = dynamic_size
    grid = divide(image_size, patch_size)
    self.patch_embed = PatchEmbed(grid, patch_size, in_dim, embed_dim, dtype=dtype, rngs=rngs)
    self.pos_embed = nnx.Param(normal_init(rngs.params(), (*grid, embed_dim), sum_type(dtype)))
    (self.blocks,) = _make_blocks(
      [grid],
      [embed_dim],
      [depth],
      drop_path_rate=drop_path_rate,
      scan=scan,
      mlp_ratio=mlp_ratio,
      mixer=mixer,
      backend=backend,
      filter_precision=filter_precision,
      dtype=dtype,
      rngs=rngs,
    )
    self.norm = LayerNorm(embed_dim, dtype=dtype, rngs=rngs)
    self.head = _make_head(embed_dim, num_classes, dtype, rngs)

  def stages(self) -> Iterator[tuple[PatchEmbed, Blocks]]:
    """Yields the patch embedding and the blocks of the one stage."""
    yield self.patch_embed, self.blocks

  def stage_name(self, part: str, i: int) -> str:
    """The dotted name of a part of the one stage: the part itself."""
    return part


class GFNetPyramid(Network):
  """The hierarchical network: stages of falling resolution and growing width.

  Args:
    image_size: side of the images, or (height, width), in pixels.
    patch_size: side of a patch of the stem, in pixels; every later stage halves the grid.
    embed_dims: channels of each stage.
    depths: number of blocks of each stage.
    num_classes: outputs of the head; 0 for a model without one, which returns features.
    in_dim: channels of the images.
    mlp_ratio: hidden channels of an MLP per channel.
    drop_path_rate: stochastic depth of the last block; grows linearly from 0.
    layer_scale_init: initial value of the factors on the residual branches.
    mixer: what mixes the tokens of a block: a name in `mixers.MIXERS`.
    backend: how it transforms: "auto" or a name in `fourier_backends.BACKENDS`.
    filter_precision: of the filter's transforms, see `precision.filter_precision`; None for
      the mixer's own, "high".
    dynamic_size: the rule by which images of another size are answered, see `fit.resize`; None
      refuses them.
    remat: computes every block again in the backward pass instead of keeping its
      intermediate values: less memory, more time.
    scan: holds the blocks of a stage as one `BlockStack`: compiles faster, but gives the
      parameters other names and shapes.
    dtype: type of the matrix products; parameters and results stay float32, or everything is
      float64 if it is that.
    rngs: source of the initial weights.

  Raises:
    UserError: if the patches and the halvings do not divide the image, a stage has no
      blocks, a size is no positive integer, a name is unknown, or rngs has no parameters.
  """

  def __init__(
    self,
    image_size: ImageSize = 224,
    patch_size: int = 4,
    embed_dims: Sequence[int] = (64, 128, 256, 512),
    depths: Sequence[int] = (3, 3, 10, 3),
    num_classes: int = 1000,
    *,
    in_dim: int = 3,
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.0,
    layer_scale_init: float = 1e-3,
    mixer: str = "global-filter",
    backend: str = "auto",
    filter_precision: str | None = None,
    dynamic_size: str | None = None,
    remat: bool = False,
    scan: bool = False,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    image_size = as_height_width(image_size)
    patch_size, in_dim = as_sizes(patch_size=patch_size, in_dim=in_dim)
    embed_dims = as_sizes_per_stage("embed_dims", embed_dims, "channels of every stage")
    depths = as_sizes_per_stage("depths", depths, "at least one block in every stage")
    num_classes = _check(num_classes, dynamic_size, dtype, rngs)
    self._remember(locals())
    if len(embed_dims) != len(depths):
      raise UserError(f"embed_dims {embed_dims} and depths {depths} must have one entry per stage")
    self.image_size, self.mixer, self.remat = image_size, mixer, remat
    self.dynamic_size = dynamic_size
    patches = [patch_size] + [2] * (len(depths) - 1)
    grids = _grids(image_size, patches)
    in_dims = [in_dim, *embed_dims[:-1]]

    self.patch_embed = nnx.List(
      PatchEmbed(grid, patch, before, dim, dtype=dtype, rngs=rngs)
      for grid, patch, before, dim in zip(grids, patches, in_dims, embed_dims, strict=True)
    )
    shape = (*grids[0], embed_dims[0])
    self.pos_embed = nnx.Param(normal_init(rngs.params(), shape, sum_type(dtype)))
    self.blocks = nnx.List(
      _make_blocks(
        grids,
        embed_dims,
        depths,
        drop_path_rate=drop_path_rate,
        scan=scan,
        mlp_ratio=mlp_ratio,
        layer_scale_init=layer_scale_init,
        mixer=mixer,
        backend=backend,
        filter_precision=filter_precision,
        dtype=dtype,
        rngs=rngs,
      )
    )
    self.norm = LayerNorm(embed_dims[-1], dtype=dtype, rngs=rngs)
    self.head = _make_head(embed_dims[-1], num_classes, dtype, rngs)

  def stages(self) -> Iterator[tuple[PatchEmbed, Blocks]]:
    """Yields the patch embedding and the blocks of every stage."""
    yield from zip(self.patch_embed, self.blocks, strict=True)

  def stage_name(self, part: str, i: int) -> str:
    """The dotted name of a part of stage i: "blocks.2"."""
    return f"{part}.{i}"


def _grids(image_size: tuple[int, int], patches: Sequence[int]) -> list[tuple[int, int]]:
  """The (height, width) in tokens of every stage, whose patches have these sides in its input."""
  strides = np.cumprod(patches).tolist()
  divide(image_size, strides[-1])  # the error is of the coarsest: others ask for too little
  return [divide(image_size, stride) for stride in strides]


def _check(num_classes: object, dynamic_size: object, dtype: object, rngs: object) -> int:
  """Checks what both networks take; returns the number of classes."""
  check_dtype(dtype)
  check_rngs(rngs)
  if dynamic_size is not None:
    check_rule(dynamic_size)
  return as_size("num_classes", num_classes, or_zero=True)


def _make_head(dim: int, num_classes: int, dtype: DTypeLike, rngs: nnx.Rngs) -> Linear | None:
  return Linear(dim, num_classes, dtype=dtype, rngs=rngs) if num_classes else None


def _make_blocks(
  grids: Sequence[tuple[int, int]],
  dims: Sequence[int],
  depths: Sequence[int],
  *,
  drop_path_rate: float,
  scan: bool,
  **options,
) -> list[Blocks]:
  """The blocks of every stage; the options are those of `Block`."""
  rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
  group = BlockStack if scan else BlockList
  return [
    group([Block(dim, grid, drop_path_rate=next(rates), **options) for _ in range(depth)])
    for grid, dim, depth in zip(grids, dims, depths, strict=True)
  ]


def drop_path_rates(last: float, depth: int) -> list[float]:
  """Rates of stochastic depth that grow linearly from 0 at the first block, in float32.

  Args:
    last: the rate of the last block.
    depth: number of blocks.

  Raises:
    UserError: if the last rate is not in [0, 1).
  """
  if not isinstance(last, numbers.Real) or not 0 <= last < 1:
    raise UserError(f"drop_path_rate is {last!r}, expected at least 0 and less than 1")
  return np.linspace(0, last, depth, dtype=np.float32).tolist()
