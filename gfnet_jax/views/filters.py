"""The global filters of a model, layer by layer, as arrays to look at."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gfnet_jax.errors import UserError
from gfnet_jax.models.base import Network
from gfnet_jax.models.fourier import spatial_kernel
from gfnet_jax.models.global_local import GlobalLocalFilter
from gfnet_jax.models.mixers import GlobalFilter

HIGH = 0.25  # cycles per token: half of the highest frequency along an axis


class FilterLayer(NamedTuple):
  """The filters of one block, a channel each.

  Attributes:
    name: of the block, such as "blocks.3", or "blocks.2.3" (stage, block).
    stage: its number, from 0; the filters of a stage are of one size.
    kernel: (height, width, channels), see `GlobalFilter.kernel`.
    response: (height, width, channels), complex, see `GlobalFilter.response`.
  """

  name: str
  stage: int
  kernel: np.ndarray
  response: np.ndarray


def filter_layers(model: Network) -> list[FilterLayer]:
  """The filters of all blocks that have one, from the first to the last.

  Raises:
    UserError: if there is none.
  """
  layers = []
  for stage, (_, blocks) in enumerate(model.stages()):
    for i, block in enumerate(blocks):
      for layer in _filters_of(block):
        name = f"{model.stage_name('blocks', stage)}.{i}"
        kernel = spatial_kernel(layer.complex_weight[...], layer.grid)
        response = jnp.fft.fft2(kernel, axes=(0, 1))
        layers.append(FilterLayer(name, stage, np.asarray(kernel), np.asarray(response)))
  if not layers:
    raise UserError(_no_filters(model))
  return layers


def check_has_filters(model: Network) -> None:
  """Raises UserError for a model without filters; it may be abstract."""
  if not _filters_of(model):  # single blocks of an abstract stack could not be read
    raise UserError(_no_filters(model))


def _filters_of(module: nnx.Module) -> list[GlobalFilter | GlobalLocalFilter]:
  """Those of mixers that are one, or have one beside other layers."""
  kinds = GlobalFilter | GlobalLocalFilter
  return [layer for _, layer in nnx.iter_modules(module) if isinstance(layer, kinds)]


def _no_filters(model: Network) -> str:
  return (
    f"the token mixer of this model is {model.mixer!r}, which has no global filters to look at; "
    "choose a model with the mixer 'global-filter'"
  )


def check_channels(layers: Sequence[FilterLayer], channels: Sequence[int]) -> None:
  """Raises UserError unless every layer has these channels."""
  for layer in layers:
    count = layer.kernel.shape[-1]
    for channel in channels:
      if not 0 <= channel < count:
        raise UserError(
          f"channel {channel} is out of range: {layer.name} has {count} channels, 0 to {count - 1}"
        )


def select_layers(layers: Sequence[FilterLayer], numbers: Sequence[int]) -> list[FilterLayer]:
  """Some of the layers, by their numbers from 0.

  Raises:
    UserError: if there is no such layer.
  """
  for number in numbers:
    if not 0 <= number < len(layers):
      raise UserError(
        f"layer {number} is out of range: the model has {len(layers)} layers with filters, 0 to "
        f"{len(layers) - 1}"
      )
  return [layers[number] for number in numbers]


def by_stage(layers: Sequence[FilterLayer]) -> list[list[FilterLayer]]:
  """The layers of each stage, whose filters are of one size."""
  stages = {}
  for layer in layers:
    stages.setdefault(layer.stage, []).append(layer)
  return list(stages.values())


def radius(grid: tuple[int, int]) -> np.ndarray:
  """How far each frequency of `fft2` is from the mean: (height, width), in cycles per token."""
  rows, columns = map(np.fft.fftfreq, grid)
  return np.hypot(rows[:, None], columns[None])


def radial_profile(response: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """How strongly a filter passes low to high frequencies, whatever their direction.

  Args:
    response: (height, width, channels), complex.

  Returns:
    Radii (rings,) in cycles per token, ascending from 0, and the mean of |response|^2 over each
    ring (rings, channels). A ring is as wide as the finer step between frequencies.
  """
  grid = response.shape[:2]
  rings = np.rint(radius(grid) * max(grid)).astype(int).ravel()
  counts = np.bincount(rings)
  energy = np.zeros((len(counts), response.shape[-1]))
  np.add.at(energy, rings, (np.abs(response) ** 2).reshape(len(rings), -1))
  present = np.flatnonzero(counts)
  return present / max(grid), energy[present] / counts[present, None]


def high_share(response: np.ndarray) -> float:
  """The part of the energy, of all channels together, that lies above `HIGH`."""
  energy = (np.abs(response) ** 2).sum(-1)
  return float(energy[radius(response.shape[:2]) > HIGH].sum() / max(energy.sum(), 1e-300))
