"""What both networks share: how images pass through the stages, and the head behind them."""

from collections.abc import Iterable
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gfnet_jax.errors import UserError
from gfnet_jax.models.dense import Linear
from gfnet_jax.models.initializers import initial_rngs
from gfnet_jax.models.layers import PatchEmbed
from gfnet_jax.models.products import repeat_rows, sum_type
from gfnet_jax.models.stage import Blocks
from gfnet_jax.text import printable


class Network(nnx.Module):
  """Stages of blocks, each behind a patch embedding; then norm, mean over tokens, head.

  A subclass builds the layers and says where they are: `stages` and `stage_name`.

  Attributes:
    image_size: (height, width) of the images, in pixels.
    mixer: the name of the token mixer in `mixers.MIXERS`.
    remat: whether the backward pass computes the inside of every block again.
    pos_embed: (rows, columns, channels), added to the tokens of the first stage.
    norm: the final layer norm.
    head: the classifier.
    settings: the constructor's arguments but `rngs`, as pairs; hashable, as NNX needs it.
  """

  image_size: tuple[int, int]
  mixer: str
  remat: bool
  pos_embed: nnx.Param
  norm: nnx.Module
  head: Linear
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

  def forward_intermediates(
    self, images: jax.Array, *, key: jax.Array | None = None
  ) -> list[jax.Array]:
    """Maps images to the tokens behind each stage, before the final norm.

    Args:
      images: (batch, height, width, 3), normalised by ImageNet's mean and deviation.
      key: PRNG key of stochastic depth in training; None means inference.

    Raises:
      UserError: if the images are not what the model was built for, or for a bad key.

    Returns:
      One array (batch, rows, columns, channels), of the model's `dtype`, per stage; the isotropic
      network has a single stage.
    """
    keys = split_key(key, [len(blocks) for _, blocks in self.stages()])
    x, outputs = images, []
    for patch_embed, blocks in self.stages():
      x = patch_embed(x)
      if not outputs:
        x += repeat_rows(self.pos_embed[...].astype(x.dtype), x.shape[0])
      x = blocks(x, keys[len(outputs)], remat=self.remat)
      outputs.append(x)
    return outputs

  def forward_features(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Maps images to features (batch, channels), behind the final norm and mean.

    The arguments and the type are those of `forward_intermediates`.
    """
    x = self.forward_intermediates(images, key=key)[-1]
    return self.norm(x).mean(axis=(1, 2))

  def __call__(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Maps images to logits (batch, num_classes).

    The arguments and the type are those of `forward_intermediates`.
    """
    return self.head(self.forward_features(images, key=key))

  def fresh(self, **changes) -> Self:
    """A network with initial weights, built as this one but for some arguments.

    A subclass whose constructor takes other arguments overrides this.
    """
    arguments = {**dict(self.settings), "remat": self.remat, **changes}
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
