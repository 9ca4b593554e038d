"""What both networks share: how images pass through the stages, and the head behind them."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gfnet_jax.errors import UserError
from gfnet_jax.models.dense import Linear
from gfnet_jax.models.fit import resize
from gfnet_jax.models.initializers import initial_rngs
from gfnet_jax.models.layers import PatchEmbed
from gfnet_jax.models.products import repeat_rows, sum_type
from gfnet_jax.models.sizes import as_places
from gfnet_jax.models.stage import BlockList, Blocks
from gfnet_jax.text import printable


class Network(nnx.Module):
  """Stages of blocks, each behind a patch embedding; then norm, mean over tokens, head.

  A subclass builds the layers and says where they are: `stages` and `stage_name`.

  Attributes:
    image_size: (height, width) of the images, in pixels.
    mixer: the name of the token mixer in `mixers.MIXERS`.
    dynamic_size: the rule by which to resize for images of another size, see `fit.resize`; None
      refuses them. May be set at any time.
    remat: whether the backward pass computes the inside of every block again.
    pos_embed: (rows, columns, channels), added to the tokens of the first stage.
    norm: the final layer norm; None in a trunk that others build on.
    head: the classifier; None in a model of 0 classes.
    settings: the constructor's arguments but `rngs`, as pairs; hashable, as NNX needs it.
  """

  image_size: tuple[int, int]
  mixer: str
  dynamic_size: str | None = None
  remat: bool
  pos_embed: nnx.Param
  norm: nnx.Module | None
  head: Linear | None
  settings: tuple[tuple[str, object], ...]

  @property
  def dtype(self) -> jnp.dtype:
    """The type of parameters and results: float32, or float64 if the network is of that."""
    return sum_type(dict(self.settings)["dtype"])

  def stages(self) -> Iterable[tuple[PatchEmbed, Blocks]]:
    """Yields the patch embedding and the blocks of every stage."""
    raise NotImplementedError

  def stage_name(self, part: str, i: int) -> str:
    """The dotted name of a part of stage i, as in the official state dict.

    Args:
      part: "patch_embed" or "blocks".
      i: number of the stage, from 0.
    """
    raise NotImplementedError

  @property
  def trunk(self) -> "Network":
    """The network itself, as in one with a decoder (`SemanticFPN`) the network below it."""
    return self

  @property
  def num_classes(self) -> int:
    """Outputs of the head; 0 without one."""
    return 0 if self.head is None else self.head.out_features

  def forward_intermediates(
    self,
    images: jax.Array,
    *,
    stages: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    key: jax.Array | None = None,
  ) -> list[jax.Array]:
    """Maps images to the tokens behind stages or blocks, before the final norm.

    That is `model.norm`, for tokens of as many channels as the last stage has.

    Args:
      images: (batch, height, width, 3), normalised by ImageNet's mean and deviation. With
        `dynamic_size`, of any size that the patches divide; `jax.jit` compiles once per size.
      stages: numbers of the stages, from 0, or from -1 backwards; None for all. The isotropic
        network has a single one.
      blocks: in place of stages, numbers of blocks, counted through all stages.
      key: PRNG key of stochastic depth in training; None means inference.

    Raises:
      UserError: if the images are not what the model was built for, for a stage or a block that
        it does not have, or for a bad key.

    Returns:
      One array (batch, rows, columns, channels), of the model's `dtype`, for each stage or block,
      in the order of their numbers in the arguments. Nothing behind the last one is computed.
    """
    size = images.shape[1:3] if getattr(images, "ndim", 0) == 4 else self.image_size
    if self.dynamic_size is not None and size != self.image_size:
      network = resize(self, size, self.dynamic_size)
      return network.forward_intermediates(images, stages=stages, blocks=blocks, key=key)
    depths = [len(blocks) for _, blocks in self.stages()]
    if stages is not None and blocks is not None:
      raise UserError("forward_intermediates got stages and blocks, expected one of the two")
    by_block = blocks is not None
    if by_block:
      wanted = as_places("blocks", blocks, sum(depths))
    else:
      wanted = as_places("stages", range(len(depths)) if stages is None else stages, len(depths))
    walk = self._walk(images, split_key(key, depths), by_block)
    outputs = list(itertools.islice(walk, max(wanted, default=-1) + 1))
    return [outputs[i] for i in wanted]

  def _walk(
    self, images: jax.Array, keys: list[jax.Array | None], by_block: bool
  ) -> Iterator[jax.Array]:
    """Yields the tokens behind every stage, or behind every block."""
    x = images
    for i, (patch_embed, blocks) in enumerate(self.stages()):
      x = patch_embed(x)
      if i == 0:
        x += repeat_rows(self.pos_embed[...].astype(x.dtype), x.shape[0])
      if not by_block:
        x = blocks(x, keys[i], remat=self.remat)
        yield x
        continue
      for j, block in enumerate(blocks):
        key = None if keys[i] is None else keys[i][j : j + 1]
        x = BlockList([block])(x, key, remat=self.remat)
        yield x

  def forward_features(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Maps images to features (batch, channels), behind the final norm and mean.

    The images, the key and the type are those of `forward_intermediates`.
    """
    (x,) = self.forward_intermediates(images, stages=[-1], key=key)
    return self.norm(x).mean(axis=(1, 2))

  def __call__(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Maps images to logits (batch, num_classes); without a head, to the features.

    The images, the key and the type are those of `forward_intermediates`.
    """
    features = self.forward_features(images, key=key)
    return features if self.head is None else self.head(features)

  def fresh(self, **changes) -> Self:
    """A network with initial weights, built as this one but for some arguments.

    A subclass whose constructor takes other arguments overrides this.
    """
    now = {"remat": self.remat, "dynamic_size": self.dynamic_size}
    arguments = {**dict(self.settings), **now, **changes}
    return type(self)(**arguments, rngs=initial_rngs(0))

  def _remember(self, arguments: dict[str, object]) -> None:
    """Keeps the arguments of the constructor: its `locals()` when it begins."""
    others = ("self", "rngs", "__class__")
    self.settings = tuple((name, arguments[name]) for name in arguments if name not in others)


def split_key(key: jax.Array | None, depths: list[int]) -> list[jax.Array | None]:
  """The PRNG keys (blocks,) of every stage, or None for each in inference."""
  if key is None:
    return [None] * len(depths)
  try:
    keys = jax.random.split(key, sum(depths))
  except (TypeError, ValueError) as error:
    raise UserError(
      f"key is {printable(repr(key))}, expected one PRNG key such as jax.random.key(0)"
    ) from error
  return jnp.split(keys, np.cumsum(depths)[:-1])
