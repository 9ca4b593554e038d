"""The seven published variants (paper, tables 1 and 2; official main_gfnet.py)."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gfnet_jax.errors import UserError
from gfnet_jax.models.base import Network
from gfnet_jax.models.gfnet import GFNet, GFNetPyramid
from gfnet_jax.models.image_size import ImageSize
from gfnet_jax.models.initializers import initial_rngs
from gfnet_jax.models.ranges import check_arguments
from gfnet_jax.models.semantic_fpn import DECODERS, DIMS, SemanticFPN, Trunk
from gfnet_jax.names import look_up

DYNAMIC_SIZE = "bilinear"  # of networks with a decoder: the authors' rule for segmentation


def _isotropic(embed_dim, depth, drop_path_rate):
  return GFNet, dict(embed_dim=embed_dim, depth=depth, drop_path_rate=drop_path_rate)


def _pyramid(embed_dims, depths, drop_path_rate, layer_scale_init):
  return GFNetPyramid, dict(
    embed_dims=embed_dims,
    depths=depths,
    drop_path_rate=drop_path_rate,
    layer_scale_init=layer_scale_init,
  )


VARIANTS = {
  #                        channels             blocks         drop path  layer scale
  "gfnet-ti": _isotropic(256, 12, 0.0),
  "gfnet-xs": _isotropic(384, 12, 0.0),
  "gfnet-s": _isotropic(384, 19, 0.15),
  "gfnet-b": _isotropic(512, 19, 0.25),
  "gfnet-h-ti": _pyramid((64, 128, 256, 512), (3, 3, 10, 3), 0.1, 1e-3),
  "gfnet-h-s": _pyramid((96, 192, 384, 768), (3, 3, 10, 3), 0.2, 1e-5),
  "gfnet-h-b": _pyramid((96, 192, 384, 768), (3, 3, 27, 3), 0.4, 1e-6),
}


def list_models() -> list[str]:
  """The names that `create_model` accepts."""
  return list(VARIANTS)


def create_model(
  name: str,
  *,
  image_size: ImageSize = 224,
  num_classes: int = 1000,
  decoder: str | None = None,
  decoder_dims: Sequence[int] | None = None,
  dtype: DTypeLike = jnp.float32,
  rngs: nnx.Rngs | None = None,
  **overrides,
) -> Network | SemanticFPN:
  """Creates one of the seven variants with fresh weights.

  Args:
    name: one of `list_models()`.
    image_size: side of the images, or (height, width), in pixels.
    num_classes: outputs of the head; 0 for a model without one, which returns features.
    decoder: "semantic-fpn" for a network that gives every pixel a class (`SemanticFPN`), of a
      hierarchical variant; None for one that classifies images. With it, images of other sizes
      are answered by the rule "bilinear" unless `dynamic_size` says otherwise.
    decoder_dims: channels of the decoder's pyramid and of its head; None for the published ones.
    dtype: type of the matrix products; parameters and results stay float32, or everything is
      float64 if it is that, for which JAX has to allow 64 bits (JAX_ENABLE_X64=1).
    rngs: source of the initial weights; nnx.Rngs(0) if None.
    **overrides: further arguments of `GFNet` or `GFNetPyramid`, in place of the
      variant's: drop_path_rate or mixer, for example.

  Raises:
    UserError: for an unknown name or override, an argument of another type or beyond what
      `ranges.ARGUMENTS` allows, float64 where JAX would make float32 of it, or an image size
      that the patches do not divide.
  """
  arguments = {"name": name, "image_size": image_size, "num_classes": num_classes}
  options = {"decoder": decoder, "decoder_dims": decoder_dims}
  check_arguments(arguments | {n: v for n, v in options.items() if v is not None} | overrides)
  module, settings = look_up("model", name, VARIANTS)
  known = module.__init__.__kwdefaults__.keys() | set(module.__init__.__annotations__)
  unknown = sorted(overrides.keys() - known)
  if unknown:
    raise UserError(
      f"unknown option {unknown[0]!r} of {name}, expected one of {', '.join(sorted(known))}"
    )
  settings, rngs = {**settings, **overrides}, initial_rngs(0) if rngs is None else rngs
  if decoder is None and decoder_dims is not None:
    raise UserError("decoder_dims is set, but no decoder; expected decoder='semantic-fpn' with it")
  if decoder is None:
    return module(image_size, **settings, num_classes=num_classes, dtype=dtype, rngs=rngs)
  make_decoded = look_up("decoder", decoder, DECODERS)
  if module is not GFNetPyramid:
    hierarchical = [other for other, (kind, _) in VARIANTS.items() if kind is GFNetPyramid]
    raise UserError(
      f"decoder is {decoder!r}, but {name} has a single stage, expected one of "
      f"{', '.join(hierarchical)}"
    )
  settings = {"dynamic_size": DYNAMIC_SIZE} | settings
  trunk = Trunk(image_size, **settings, num_classes=0, dtype=dtype, rngs=rngs)
  return make_decoded(trunk, num_classes, decoder_dims=decoder_dims or DIMS, dtype=dtype, rngs=rngs)


def coarsest_stride(model: Mapping[str, Any]) -> int:
  """The pixels per token of the last stage of the model that these arguments make.

  Args:
    model: of `create_model`; uses name, patch_size and depths.
  """
  module, settings = look_up("model", model["name"], VARIANTS)
  defaults = {name: one.default for name, one in signature(module.__init__).parameters.items()}
  found = defaults | settings | {name: value for name, value in model.items() if value is not None}
  return found["patch_size"] * 2 ** (len(found.get("depths") or [1]) - 1)
