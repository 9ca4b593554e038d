"""Operations of networks and token mixers on one image, counted from their sizes alone."""

import math
from collections.abc import Callable
from typing import NamedTuple

from gfnet_jax.errors import UserError
from gfnet_jax.models.base import Network

NORM = 5  # per element, fvcore's estimate of a layer norm


class Operations(NamedTuple):
  """What one image costs, by kind.

  Attributes:
    products: multiply-adds of matrix products and convolutions; biases are not counted.
    transforms: tokens * channels * ceil(log2(points)) for each transform of so many points.
    norms: five per element of every layer norm.
  """

  products: int = 0
  transforms: int = 0
  norms: int = 0

  def plus(self, other: "Operations") -> "Operations":
    return Operations(*map(sum, zip(self, other, strict=True)))

  def times(self, n: int) -> "Operations":
    return Operations(*(n * count for count in self))


CONVENTIONS: dict[str, Callable[[Operations], int]] = {
  "multiply-adds": lambda operations: operations.products,
  "with-transforms": lambda operations: operations.products + operations.transforms,
  "official": sum,
}


def of_network(model: Network) -> Operations:
  """Of all its layers; the model may be abstract, as from `nnx.eval_shape`."""
  total = Operations(products=model.head.in_features * model.head.out_features)
  for patch_embed, blocks in model.stages():
    tokens, dim = math.prod(patch_embed.grid), patch_embed.proj.out_features
    total = total.plus(Operations(products=tokens * patch_embed.proj.in_features * dim))
    hidden = blocks[0].mlp.fc1.out_features
    rest = Operations(products=2 * tokens * dim * hidden, norms=2 * NORM * tokens * dim)
    block = of_mixer(model.mixer, tokens, dim).plus(rest)
    total = total.plus(block.times(len(blocks)))
  return total.plus(Operations(norms=NORM * tokens * dim))  # the final norm


def of_mixer(mixer: str, tokens: int, dim: int) -> Operations:
  """Of one token mixing layer.

  Raises:
    UserError: for a mixer that is not in `RULES`.
  """
  if mixer not in RULES:
    raise UserError(
      f"the operations of the mixer {mixer!r} are not known, expected one of {', '.join(RULES)}; "
      "add a rule to RULES in tools/benchmarks/_operations.py"
    )
  return RULES[mixer](tokens, dim)


def _filter(tokens: int, dim: int) -> Operations:
  """One transform and its inverse; the product between them is not counted by the authors."""
  return Operations(transforms=2 * tokens * dim * _log2(tokens))


def _fnet(tokens: int, dim: int) -> Operations:
  """One transform over all tokens and channels."""
  return Operations(transforms=tokens * dim * _log2(tokens * dim))


def _convolution(size: int) -> Callable[[int, int], Operations]:
  return lambda tokens, dim: Operations(products=size**2 * tokens * dim)


def _attention(tokens: int, dim: int) -> Operations:
  """Four projections; scores and weighted means, whatever the number of heads."""
  return Operations(products=4 * tokens * dim**2 + 2 * tokens**2 * dim)


def _global_local(tokens: int, dim: int) -> Operations:
  halves = _filter(tokens, dim // 2).plus(_convolution(3)(tokens, dim // 2))
  return halves.plus(Operations(norms=2 * NORM * tokens * dim))


def _log2(points: int) -> int:
  """Rounded up."""
  return (points - 1).bit_length()


RULES: dict[str, Callable[[int, int], Operations]] = {
  "global-filter": _filter,
  "fnet": _fnet,
  "conv3": _convolution(3),
  "conv5": _convolution(5),
  "conv7": _convolution(7),
  "spatial-mlp": lambda tokens, dim: Operations(products=tokens**2 * dim),
  "attention": _attention,
  "global-local": _global_local,
  "identity": lambda tokens, dim: Operations(),
}
