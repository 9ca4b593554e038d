"""Carries parameters of one of our models to another image size, head or block layout.

This goes by our own names of parameters, so that any mixer is carried like the global
filter. What depends on the token grid is resized by a rule of resize.py, a mixer's parameters by
its `resize_params`.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gfnet_jax.errors import UserError
from gfnet_jax.models.functional import Params, merge, split
from gfnet_jax.models.image_size import ImageSize, as_height_width
from gfnet_jax.models.mixers import MIXERS, GlobalFilter
from gfnet_jax.models.resize import Array, Grid, check_rule, resize_positions
from gfnet_jax.models.stage import separate_blocks, stack_blocks
from gfnet_jax.text import printable

if TYPE_CHECKING:  # it calls `resize` for images of another size
  from gfnet_jax.models.base import Network
  from gfnet_jax.models.semantic_fpn import SemanticFPN

Arrays = dict[str, Array]
Shape = tuple[int, ...]

HEAD, NORM = ("head.kernel", "head.bias"), ("norm.scale", "norm.bias")
LISTED = 8  # names of each kind in an error message


def resize(
  model: "Network | GlobalFilter", image_size: ImageSize, rule: str = "official"
) -> "Network | GlobalFilter":
  """Returns a model, or one filter, for another image size, with its parameters resized.

  Inside `jax.jit` or `jax.grad` it is a part of the computation, and differentiable. Position
  embeddings are interpolated, bicubically but for the rule "bilinear". Of filters,

  - "official" interpolates the half spectrum bicubically, as the official fine-tuning at
    another resolution (main_gfnet.py, --finetune);
  - "bilinear" does so bilinearly, as the authors for detection and segmentation;
  - "kernel" keeps the convolution kernel: a token meets the same neighbours, and new ones
    further away have weight 0. A smaller size crops the kernel;
  - "spectrum" keeps the transfer function in cycles per image: the kernel grows with the image,
    and new, higher frequencies are removed (the Nyquist frequency of an even size by half).

  Args:
    model: stays as it is.
    image_size: side of the images, or (height, width), in pixels; for a filter in tokens.
    rule: one of these names.

  Returns:
    A new model or filter, which shares no memory with the old one.

  Raises:
    UserError: for an unknown rule, if the patches do not divide the images, or if the mixer has no
      rule for resizing its parameters.
  """
  check_rule(rule)
  if isinstance(model, GlobalFilter):
    after = as_height_width(image_size)
    params = {name: _value(v) for name, v in split(model)[1].items()}
    params = model.resize_params(params, model.grid, after, rule)
    resized = nnx.clone(model)
    resized.complex_weight = nnx.Param(jnp.array(params["complex_weight"], copy=True))
    resized.grid = after
    return resized
  if not hasattr(model, "stages"):
    raise UserError(
      f"cannot resize a {type(model).__name__}, expected a GFNet, a GFNetPyramid or a GlobalFilter"
    )
  # Abstract: initial weights would only be thrown away.
  target = nnx.eval_shape(lambda: model.fresh(image_size=image_size))
  return merge(split(target)[0], fit_params(model, target, {}, rule))


def fit_params(
  source: "Network", target: "Network", fresh: Params, rule: str = "official"
) -> Params:
  """Carries the parameters of one model over to another.

  Equal shapes are copied. What depends on the token grid is resized if the grids differ,
  blocks are stacked or separated as the target has them, and the head stays fresh, or is left out,
  if the numbers of classes differ; so does the final norm if one of them has none.

  Args:
    source: the model whose parameters are taken.
    target: the model to find parameters for; may be abstract, as from `nnx.eval_shape`.
    fresh: initial parameters of the target, of which the head and the norm may be taken.
    rule: how to resize, see `resize`.

  Returns:
    Parameters of the target by name, of its types: new arrays, but for what stays fresh.

  Raises:
    UserError: if the two are not the same network: another mixer, depth or width; or if
      the mixer has no rule for resizing its parameters.
  """
  if source.mixer != target.mixer:
    raise UserError(
      f"the weights are of a network with mixer {source.mixer!r}, the model has "
      f"{target.mixer!r}; create it with mixer={source.mixer!r}, or start from other weights"
    )
  new = HEAD if source.num_classes != target.num_classes else ()
  new += NORM if (source.norm is None) != (target.norm is None) else ()
  _, model_params = split(target)
  params = {name: _value(v) for name, v in split(source)[1].items() if name not in new}
  params = separate_blocks(params)
  expected = {
    name: value.shape
    for name, value in jax.eval_shape(separate_blocks, model_params).items()
    if name not in new
  }
  _check(*({n: v for n, v in d.items() if not _is_on_grid(n)} for d in (params, expected)))
  grids = [patch_embed.grid for patch_embed, _ in source.stages()]
  params = fit_to_grids(params, grids, target, rule)
  if misfits := describe_misfits(params, expected):
    if source.image_size == target.image_size:
      raise UserError(f"the weights do not fit the model: {misfits}")
    if hasattr(MIXERS[target.mixer], "resize_params"):
      raise UserError(f"resize_params of the mixer {target.mixer!r} does not fit it: {misfits}")
    before, after = (" x ".join(map(str, size.image_size)) for size in (source, target))
    raise UserError(
      f"the mixer {target.mixer!r} cannot be carried to images of {after} pixels: its parameters "
      "depend on the token grid, and it has no resize_params; add one (see "
      f"gfnet_jax/models/mixers.py), or stay at {before} pixels"
    )
  fitted = stack_blocks(params, model_params)
  # Copies: JAX on a CPU would share memory with the source.
  fitted = {
    name: jnp.array(value, model_params[name].dtype, copy=True) for name, value in fitted.items()
  }
  return fitted | {name: fresh[name] for name in new if name in model_params}


def carry_params(
  source: "Network | SemanticFPN", target: "Network | SemanticFPN", fresh: Params
) -> Params:
  """As `fit_params`, for networks of which one or both may have a decoder.

  A trunk below a decoder is resized by the rule by which it answers images of other sizes, and
  other networks by the official one. Of the decoder, what has the same name and shape in both is
  copied, and the rest stays fresh: the classifier, if the numbers of classes differ, or all of it.
  """
  if target.trunk is target:
    return fit_params(source.trunk, target, fresh)
  fitted = fit_params(source.trunk, target.trunk, {}, target.dynamic_size or "official")
  params = {f"trunk.{name}": value for name, value in fitted.items()}
  others = {} if source.trunk is source else split(source)[1]
  for name, value in fresh.items():
    if name not in params:
      found = others.get(name)
      same = found is not None and found.shape == value.shape
      params[name] = jnp.array(found, value.dtype, copy=True) if same else value
  return params


def fit_to_grids(
  params: Arrays, grids: Sequence[Grid], model: "Network", rule: str = "official"
) -> Arrays:
  """Resizes what depends on the token grid.

  Args:
    params: arrays by name, as in a model without stacks (see `separate_blocks`).
    grids: the token grid of every stage, as the arrays have it.
    model: whose grids the result is for.
    rule: how to resize, see `resize`.

  Returns:
    All arrays: the resized ones are new, others the very same.
  """
  params = dict(params)
  mixer = MIXERS[model.mixer]
  for i, (before, (patch_embed, blocks)) in enumerate(zip(grids, model.stages(), strict=True)):
    after = patch_embed.grid
    if before == after:
      continue
    if i == 0:
      params["pos_embed"] = resize_positions(params["pos_embed"], after, rule)
    if not hasattr(mixer, "resize_params"):
      continue
    takes_rule = "rule" in inspect.signature(mixer.resize_params).parameters
    options = {"rule": rule} if takes_rule else {}
    for j in range(len(blocks)):
      prefix = f"{model.stage_name('blocks', i)}.{j}.filter."
      own = {n.removeprefix(prefix): v for n, v in params.items() if n.startswith(prefix)}
      try:
        resized = mixer.resize_params(own, before, after, **options)
      except jax.errors.TracerArrayConversionError as error:
        raise UserError(
          f"resize_params of the mixer {model.mixer!r} takes NumPy's arrays only, expected JAX's "
          "as well inside a compiled function (see gfnet_jax/models/mixers.py); resize the model "
          "outside of it"
        ) from error
      params |= {prefix + name: value for name, value in resized.items()}
  return params


def describe_misfits(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Shape]) -> str:
  """Says which names and shapes of arrays are not the expected ones; "" if all are."""
  misfits = {
    "missing": [name for name in shapes if name not in arrays],
    "unexpected": [name for name in arrays if name not in shapes],
    "mis-shaped": [
      f"{name} is {arrays[name].shape}, expected {shapes[name]}"
      for name in shapes
      if name in arrays and arrays[name].shape != shapes[name]
    ],
    "not of a float type": [
      f"{name} is {arrays[name].dtype}"
      for name in shapes
      if name in arrays and not jnp.issubdtype(arrays[name].dtype, jnp.floating)
    ],
  }
  return ", ".join(f"{len(found)} {k} ({listed(found)})" for k, found in misfits.items() if found)


def listed(names: Sequence[str]) -> str:
  """The first names, and how many more there are."""
  more = [f"and {len(names) - LISTED} more"] if len(names) > LISTED else []
  return ", ".join([*(printable(name) for name in names[:LISTED]), *more])


def _value(array: jax.Array) -> Array:
  """NumPy's array of the same values, or the array itself while JAX traces it."""
  return array if isinstance(array, jax.core.Tracer) else np.asarray(array)


def _check(params: Arrays, shapes: Mapping[str, Shape]) -> None:
  if misfits := describe_misfits(params, shapes):
    raise UserError(
      f"the weights do not fit the model: {misfits}; create it with the widths and depths "
      "that the weights were trained with"
    )


def _is_on_grid(name: str) -> bool:
  """Whether the shape of a parameter may depend on the token grid."""
  return name == "pos_embed" or ".filter." in name
