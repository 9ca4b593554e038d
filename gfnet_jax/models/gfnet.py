"""GFNet and its hierarchical form (paper, sections 3.3 and 3.4; official gfnet.py)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gfnet_jax.errors import UserError
from gfnet_jax.models.layer_norm import LayerNorm
from gfnet_jax.models.layers import Block, Dtype, PatchEmbed, normal_init
from gfnet_jax.models.products import repeat_rows
from gfnet_jax.models.stage import Blocks, BlockStack, apply_blocks

ImageSize = int | tuple[int, int]


class GFNet(nnx.Module):
  """The isotropic network: one patch embedding, then blocks of equal size.

  Args:
    image_size: side of the images, or (height, width), in pixels.
    patch_size: side of a patch; must divide the height and the width.
    embed_dim: channels of the tokens.
    depth: number of blocks.
    num_classes: outputs of the head.
    in_dim: channels of the images.
    mlp_ratio: hidden channels of an MLP per channel.
    drop_path_rate: stochastic depth of the last block; grows linearly from 0.
    backend: of the filters' transforms: "auto" or a name of `fourier_backends.BACKENDS`.
    remat: computes every block again in the backward pass instead of keeping its
      intermediate values: less memory, more time.
    scan: holds the blocks of every stage as one `BlockStack`: less time to compile, but
      other names and shapes of the parameters.
    dtype: type of the matrix products; parameters and results stay float32.
    rngs: source of the initial weights.

  Raises:
    UserError: if the patches do not divide the image.
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
    backend: str = "auto",
    remat: bool = False,
    scan: bool = False,
    dtype: Dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.image_size, self.remat = as_height_width(image_size), remat
    grid = divide(self.image_size, patch_size)
    self.patch_embed = PatchEmbed(grid, patch_size, in_dim, embed_dim, dtype=dtype, rngs=rngs)
    self.pos_embed = nnx.Param(normal_init(rngs.params(), (*grid, embed_dim), jnp.float32))
    blocks = (
      Block(
        embed_dim,
        grid,
        mlp_ratio=mlp_ratio,
        drop_path_rate=rate,
        backend=backend,
        dtype=dtype,
        rngs=rngs,
      )
      for rate in drop_path_rates(drop_path_rate, depth)
    )
    self.blocks: Blocks = BlockStack(list(blocks)) if scan else nnx.List(blocks)
    self.norm = LayerNorm(embed_dim, rngs=rngs)
    self.head = nnx.Linear(embed_dim, num_classes, kernel_init=normal_init, dtype=dtype, rngs=rngs)

  def forward_features(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Maps normalised images (batch, H, W, 3) to features (batch, embed_dim), float32.

    Args:
      images: normalised by the mean and standard deviation of ImageNet.
      key: PRNG key of stochastic depth in training; None is inference.
    """
    x = self.patch_embed(images).astype(jnp.float32)
    x += repeat_rows(self.pos_embed[...], len(x))
    (keys,) = split_key(key, [len(self.blocks)])
    x = apply_blocks(self.blocks, x, keys, remat=self.remat)
    return self.norm(x).mean(axis=(1, 2))

  def __call__(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Maps normalised images (batch, H, W, 3) to logits (batch, num_classes), float32."""
    return self.head(self.forward_features(images, key=key)).astype(jnp.float32)


class GFNetPyramid(nnx.Module):
  """The hierarchical network: stages of falling resolution and growing width.

  Args:
    image_size: side of the images, or (height, width), in pixels.
    patch_size: side of a patch of the stem; every later stage halves the grid.
    embed_dims: channels of each stage.
    depths: blocks of each stage.
    num_classes: outputs of the head.
    in_dim: channels of the images.
    mlp_ratio: hidden channels of an MLP per channel.
    drop_path_rate: stochastic depth of the last block; grows linearly from 0.
    layer_scale_init: initial value of the factors on the residual branches.
    backend: of the filters' transforms: "auto" or a name of `fourier_backends.BACKENDS`.
    remat: computes every block again in the backward pass instead of keeping its
      intermediate values: less memory, more time.
    scan: holds the blocks of every stage as one `BlockStack`: less time to compile, but
      other names and shapes of the parameters.
    dtype: type of the matrix products; parameters and results stay float32.
    rngs: source of the initial weights.

  Raises:
    UserError: if the patches and the halvings do not divide the image, or a stage is
      without blocks.
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
    backend: str = "auto",
    remat: bool = False,
    scan: bool = False,
    dtype: Dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    if len(embed_dims) != len(depths):
      raise UserError(
        f"embed_dims {tuple(embed_dims)} and depths {tuple(depths)} must have one entry per stage"
      )
    if min(depths) < 1:
      raise UserError(f"depths is {tuple(depths)}, expected at least one block in every stage")
    self.image_size, self.remat = as_height_width(image_size), remat
    patches = [patch_size] + [2] * (len(depths) - 1)
    grids = [divide(self.image_size, int(np.prod(patches[: i + 1]))) for i in range(len(depths))]
    in_dims = [in_dim, *embed_dims[:-1]]
    rates = iter(drop_path_rates(drop_path_rate, sum(depths)))

    self.patch_embed = nnx.List(
      PatchEmbed(grid, patch, before, dim, dtype=dtype, rngs=rngs)
      for grid, patch, before, dim in zip(grids, patches, in_dims, embed_dims, strict=True)
    )
    self.pos_embed = nnx.Param(normal_init(rngs.params(), (*grids[0], embed_dims[0]), jnp.float32))
    stages = (
      [
        Block(
          dim,
          grid,
          mlp_ratio=mlp_ratio,
          drop_path_rate=next(rates),
          layer_scale_init=layer_scale_init,
          backend=backend,
          dtype=dtype,
          rngs=rngs,
        )
        for _ in range(depth)
      ]
      for grid, dim, depth in zip(grids, embed_dims, depths, strict=True)
    )
    self.blocks: nnx.List[Blocks] = nnx.List(map(BlockStack if scan else nnx.List, stages))
    self.norm = LayerNorm(embed_dims[-1], rngs=rngs)
    self.head = nnx.Linear(
      embed_dims[-1], num_classes, kernel_init=normal_init, dtype=dtype, rngs=rngs
    )

  def forward_features(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Maps normalised images (batch, H, W, 3) to features (batch, embed_dims[-1]), float32.

    Args:
      images: normalised by the mean and standard deviation of ImageNet.
      key: PRNG key of stochastic depth in training; None is inference.
    """
    keys = split_key(key, [len(stage) for stage in self.blocks])
    x = images
    for i, (patch_embed, stage) in enumerate(zip(self.patch_embed, self.blocks, strict=True)):
      x = patch_embed(x).astype(jnp.float32)
      if i == 0:
        x += repeat_rows(self.pos_embed[...], len(x))
      x = apply_blocks(stage, x, keys[i], remat=self.remat)
    return self.norm(x).mean(axis=(1, 2))

  def __call__(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Maps normalised images (batch, H, W, 3) to logits (batch, num_classes), float32."""
    return self.head(self.forward_features(images, key=key)).astype(jnp.float32)


def as_height_width(image_size: ImageSize) -> tuple[int, int]:
  """(height, width) of an image size given as a side or as a pair.

  Raises:
    UserError: if it is neither a positive integer nor a pair of them.
  """
  sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
  if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
    raise UserError(f"image_size is {image_size!r}, expected a side or (height, width) in pixels")
  return sides


def divide(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
  """The token grid of an image.

  Raises:
    UserError: if the patches do not divide the height and the width.
  """
  height, width = image_size
  if height % patch_size or width % patch_size:
    raise UserError(
      f"image_size {height}x{width} is not divisible by {patch_size} (patch size times the "
      "down-sampling of the stages); choose multiples of it for the height and the width"
    )
  return height // patch_size, width // patch_size


def drop_path_rates(last: float, depth: int) -> list[float]:
  """Linearly growing rates of stochastic depth, 0 for the first block, in float32.

  Raises:
    UserError: if the last rate is not in [0, 1).
  """
  if not 0 <= last < 1:
    raise UserError(f"drop_path_rate is {last}, expected at least 0 and less than 1")
  return np.linspace(0, last, depth, dtype=np.float32).tolist()


def split_key(key: jax.Array | None, depths: Sequence[int]) -> list[jax.Array | None]:
  """The PRNG keys (blocks,) of every stage, or None for each in inference."""
  if key is None:
    return [None] * len(depths)
  return jnp.split(jax.random.split(key, sum(depths)), np.cumsum(depths)[:-1])
