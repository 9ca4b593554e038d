"""Semantic FPN: a hierarchical network with a decoder that gives every pixel a class.

The decoder is that of Panoptic Feature Pyramid Networks (arXiv:1901.02446, section 3), in the form
of mmsegmentation's FPN and FPNHead, which PVT and the authors of GFNet use on ADE20K.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gfnet_jax.errors import UserError
from gfnet_jax.models.batch_norm import BatchNorm
from gfnet_jax.models.dense import Linear
from gfnet_jax.models.gfnet import GFNetPyramid
from gfnet_jax.models.initializers import DRAWN
from gfnet_jax.models.products import sum_type
from gfnet_jax.models.sizes import as_size, as_sizes_per_stage

DROPOUT = 0.1  # of whole channels, in front of the classifier
DIMS = (256, 128)  # channels of the pyramid, and of the head on it


class Trunk(GFNetPyramid):
  """The stages of a hierarchical network alone: no final norm and no head."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.norm = None


class SemanticFPN(nnx.Module):
  """Maps images to the logits of every pixel.

  The tokens behind every stage, without a norm, are brought to equal channels and added up from
  the coarsest to the finest (`FeaturePyramid`); each level is then convolved and enlarged to the
  finest, and the sum of all is classified (`SegmentationHead`).

  Args:
    trunk: the stages.
    num_classes: of the pixels.
    decoder_dims: channels of the pyramid and of the head.
    dtype: type of the factors of products and convolutions; parameters and results stay float32,
      or everything is float64 if it is that.
    rngs: source of the initial weights.

  Raises:
    UserError: for sizes that are no positive integers.
  """

  def __init__(
    self,
    trunk: Trunk,
    num_classes: int,
    *,
    decoder_dims: Sequence[int] = DIMS,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    expected = "two: channels of the pyramid and of the head"
    dims = as_sizes_per_stage("decoder_dims", decoder_dims, expected)
    if len(dims) != 2:
      raise UserError(f"decoder_dims is {dims}, expected {expected}")
    stages = [patch_embed.proj.out_features for patch_embed, _ in trunk.stages()]
    self.trunk, self.num_classes = trunk, as_size("num_classes", num_classes)
    self.pyramid = FeaturePyramid(stages, dims[0], dtype=dtype, rngs=rngs)
    self.decoder = SegmentationHead(len(stages), *dims, num_classes, dtype=dtype, rngs=rngs)

  @property
  def image_size(self) -> tuple[int, int]:
    """(height, width) of the images that the trunk was built for, in pixels."""
    return self.trunk.image_size

  @property
  def dynamic_size(self) -> str | None:
    """That of the trunk: how images of another size are answered. May be set at any time."""
    return self.trunk.dynamic_size

  @dynamic_size.setter
  def dynamic_size(self, rule: str | None) -> None:
    """Sets that of the trunk."""
    self.trunk.dynamic_size = rule

  @property
  def mixer(self) -> str:
    """The name of the trunk's token mixer."""
    return self.trunk.mixer

  @property
  def dtype(self) -> jnp.dtype:
    """The type of parameters and results."""
    return self.trunk.dtype

  def __call__(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Maps images to logits (batch, height, width, num_classes), float32 or float64.

    Args:
      images: (batch, height, width, 3), normalised by ImageNet's mean and deviation. With
        `dynamic_size` of any size that the strides divide: multiples of 32 for the variants.
      key: PRNG key of stochastic depth and dropout in training, which also normalises by the
        statistics of the batch and moves the running ones; None means inference.

    Raises:
      UserError: if the images are not what the model was built for.
    """
    trunk_key, dropout_key = (None, None) if key is None else jax.random.split(key)
    levels = self.pyramid(self.trunk.forward_intermediates(images, key=trunk_key))
    logits = self.decoder(levels, key=dropout_key)
    return enlarge(logits, images.shape[1] // logits.shape[1])


class FeaturePyramid(nnx.Module):
  """Brings the tokens of all stages to equal channels, coarser ones added to finer ones.

  Args:
    stages: channels of each stage, the finest first.
    dim: channels of every level of the result.
    dtype: type of the factors of products and convolutions.
    rngs: source of the initial weights, Xavier's uniform; biases start at 0.
  """

  def __init__(self, stages: Sequence[int], dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    xavier = _in_float32(nnx.initializers.xavier_uniform())
    self.laterals = nnx.List(
      Linear(channels, dim, kernel_init=xavier, dtype=dtype, rngs=rngs) for channels in stages
    )
    self.outputs = nnx.List(_convolution(dim, dim, xavier, dtype, rngs) for _ in stages)

  def __call__(self, stages: Sequence[jax.Array]) -> list[jax.Array]:
    """Maps (batch, rows, columns, channels) of each stage to (batch, rows, columns, dim)."""
    levels = [lateral(x) for lateral, x in zip(self.laterals, stages, strict=True)]
    for i in range(len(levels) - 1, 0, -1):
      factor = levels[i - 1].shape[1] // levels[i].shape[1]
      levels[i - 1] += levels[i].repeat(factor, 1).repeat(factor, 2)
    return [output(x) for output, x in zip(self.outputs, levels, strict=True)]


class SegmentationHead(nnx.Module):
  """Classifies the sum of all levels, each convolved and enlarged to the finest.

  Level i gets max(1, i) times a 3 x 3 convolution, a norm and ReLU, and is enlarged to twice its
  size behind each if i > 0.

  Args:
    levels: of the pyramid, each of half the rows and columns of the one before.
    in_dim: their channels.
    dim: channels of the sum.
    num_classes: outputs.
    dtype: type of the factors of products and convolutions.
    rngs: source of the initial weights: He's normal for convolutions, N(0, 0.01^2) for the
      classifier; biases start at 0.
  """

  def __init__(
    self,
    levels: int,
    in_dim: int,
    dim: int,
    num_classes: int,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    he = _in_float32(nnx.initializers.variance_scaling(2.0, "fan_out", "normal"))
    counts = [max(1, i) for i in range(levels)]
    self.convolutions = nnx.List(
      nnx.List(
        _convolution(dim if j else in_dim, dim, he, dtype, rngs, bias=False) for j in range(count)
      )
      for count in counts
    )
    self.norms = nnx.List(
      nnx.List(BatchNorm(dim, dtype=dtype, rngs=rngs) for _ in range(count)) for count in counts
    )
    normal = _in_float32(nnx.initializers.normal(0.01))
    self.classifier = Linear(dim, num_classes, kernel_init=normal, dtype=dtype, rngs=rngs)

  def __call__(self, levels: Sequence[jax.Array], *, key: jax.Array | None = None) -> jax.Array:
    """Maps the levels to logits (batch, rows, columns, num_classes) of the finest level's grid.

    Args:
      levels: (batch, rows, columns, in_dim), the finest first.
      key: PRNG key of dropout in training; None means inference.
    """
    total = None
    for i, (x, convolutions, norms) in enumerate(
      zip(levels, self.convolutions, self.norms, strict=True)
    ):
      for convolution, norm in zip(convolutions, norms, strict=True):
        x = jax.nn.relu(norm(convolution(x), train=key is not None))
        x = enlarge(x, 2) if i else x
      total = x if total is None else total + x
    if key is not None:
      shape = (total.shape[0], 1, 1, total.shape[-1])
      kept = jax.random.bernoulli(key, jnp.asarray(1 - DROPOUT, DRAWN), shape)
      total = jnp.where(kept, total / (1 - DROPOUT), jnp.zeros_like(total))
    return self.classifier(total)


DECODERS = {"semantic-fpn": SemanticFPN}


def enlarge(x: jax.Array, factor: int) -> jax.Array:
  """Interpolates rows and columns bilinearly, as PyTorch's with align_corners=False.

  Args:
    x: (batch, height, width, channels), any float type.
    factor: of the height and the width.

  Returns:
    (batch, factor * height, factor * width, channels) of the same type.
  """
  for axis in (1, 2) if factor > 1 else ():
    size = x.shape[axis]
    before = jnp.concatenate([x.take(jnp.array([0]), axis), _part(x, axis, 0, size - 1)], axis)
    after = jnp.concatenate([_part(x, axis, 1, size), x.take(jnp.array([size - 1]), axis)], axis)
    parts = []
    for i in range(factor):
      t = (i + 0.5) / factor - 0.5
      parts.append((1 - abs(t)) * x + abs(t) * (before if t < 0 else after))
    shape = (*x.shape[:axis], factor * size, *x.shape[axis + 1 :])
    x = jnp.stack(parts, axis + 1).reshape(shape)
  return x


def _part(x: jax.Array, axis: int, start: int, end: int) -> jax.Array:
  return jax.lax.slice_in_dim(x, start, end, axis=axis)


class Convolution(nnx.Conv):
  """3 x 3 tokens, zeros beyond the border; the result is float32 or float64.

  The factors are of the type that it is built with; so are the sums as they leave the convolution
  and its gradient.
  """

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, rows, columns, in) of any float type to (batch, rows, columns, out)."""
    return super().__call__(x).astype(sum_type(self.dtype))


def _convolution(
  in_dim: int,
  dim: int,
  kernel_init: nnx.initializers.Initializer,
  dtype: DTypeLike,
  rngs: nnx.Rngs,
  *,
  bias: bool = True,
) -> Convolution:
  return Convolution(
    in_dim,
    dim,
    (3, 3),
    use_bias=bias,
    kernel_init=kernel_init,
    dtype=dtype,
    param_dtype=sum_type(dtype),
    rngs=rngs,
  )


def _in_float32(init: nnx.initializers.Initializer) -> nnx.initializers.Initializer:
  """The initialiser, drawing in float32 whatever the type of the model."""
  return lambda key, shape, dtype=DRAWN: init(key, shape, DRAWN).astype(dtype)
