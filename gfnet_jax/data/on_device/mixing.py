"""Mixup, CutMix and label smoothing on the device (official: timm 0.4.12 mixup.py).

Mixup: arXiv:1710.09412. CutMix: arXiv:1905.04899. Drawing at random (`draw_mixing`) is
separate from what is done with the draws (`mix_images`, `mix_targets`). Draws are float32 and
int32 whatever the type of the images, so that a seed mixes them alike in float64.

The batch is split into consecutive groups. Within a group, sample i is mixed with sample
group_size - 1 - i, and each group has its own draws: it stands for the batch of one process
of the official training. Groups that do not straddle devices need no communication, and
give the same bits on any number of devices.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from gfnet_jax.errors import UserError
from gfnet_jax.models.products import sum_type

MODES = ("batch", "pair", "elem")

Edges = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # top, bottom, left, right


class Draws(NamedTuple):
  """What happens to every sample of a batch.

  Attributes:
    lam: (batch,), float32: weight of the sample in its target, and in its pixels
      unless a box is pasted; 1 mixes nothing.
    use_cutmix: (batch,), bool: paste a box of the partner instead of blending.
    box: (batch, 4), int32: top, bottom, left, right of the box; bottom and right
      exclusive.
  """

  lam: jax.Array
  use_cutmix: jax.Array
  box: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
  """Mixes batches as configured: (images, labels, key) to (images, soft targets).

  If mixup_alpha and cutmix_alpha are 0, it only smooths the labels.

  Args:
    num_classes: width of the targets.
    mixup_alpha: lam of mixup is Beta(alpha, alpha); 0 switches mixup off.
    cutmix_alpha: the same for the part of a CutMix image outside the box.
    cutmix_minmax: smallest and largest side of the box, as a fraction of the image's,
      instead of a box whose area comes from lam; switches CutMix on.
    prob: probability that a draw mixes at all.
    switch_prob: probability of CutMix if both are on.
    mode: 'batch' draws once per group, 'pair' once per pair of partners, 'elem' once
      per sample.
    group_size: samples in a group; even, and a divisor of the batch, if images are mixed.
    smoothing: of the labels.
    new_box: boxes as from timm 1.0.31 on: an odd side keeps its last pixel, and a
      minmax box may touch the lower and right edges.

  Raises:
    UserError: for an unknown mode, an odd group_size (if images are mixed) or sides out of order.
  """

  num_classes: int
  mixup_alpha: float = 0.8
  cutmix_alpha: float = 1.0
  cutmix_minmax: tuple[float, float] | None = None
  prob: float = 1.0
  switch_prob: float = 0.5
  mode: str = "batch"
  group_size: int = 128
  smoothing: float = 0.1
  new_box: bool = False

  def __post_init__(self):
    if self.mode not in MODES:
      raise UserError(f"mixing.mode is {self.mode!r}, expected one of {', '.join(MODES)}")
    if self.mixes and (self.group_size < 2 or self.group_size % 2):
      raise UserError(f"mixing.group_size is {self.group_size}, expected a positive even number")
    if self.cutmix_minmax and not 0 <= self.cutmix_minmax[0] < self.cutmix_minmax[1] <= 1:
      raise UserError(
        f"cutmix_minmax is {self.cutmix_minmax}, expected a smaller and a larger fraction of 1"
      )

  @property
  def use_cutmix(self) -> bool:
    """Whether boxes are exchanged at all."""
    return self.cutmix_alpha > 0 or self.cutmix_minmax is not None

  @property
  def mixes(self) -> bool:
    """Whether images are mixed at all."""
    return self.mixup_alpha > 0 or self.use_cutmix

  def __call__(
    self, images: jax.Array, labels: jax.Array, key: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Mixes one batch.

    Args:
      images: (batch, height, width, channels), float32 or float64, normalised.
      labels: (batch,), integer.
      key: PRNG key.

    Returns:
      The mixed images, and their targets, (batch, num_classes), sums 1; of the images' type.

    Raises:
      UserError: if the batch is not a multiple of the groups.
    """
    targets = smooth_targets(labels, self.num_classes, self.smoothing, sum_type(images.dtype))
    if not self.mixes:
      return images, targets
    batch, height, width, _ = images.shape
    if batch % self.group_size:
      raise UserError(
        f"the batch of {batch} is not a multiple of mixup's group_size {self.group_size}; "
        "choose a group_size that divides it"
      )
    draws = draw_mixing(self, key, batch, height, width)
    return (
      mix_images(images, draws, self.group_size),
      mix_targets(targets, draws.lam, self.group_size),
    )


def draw_mixing(config: Mixing, key: jax.Array, batch: int, height: int, width: int) -> Draws:
  """Draws what happens to the samples of a batch of images of height x width pixels."""
  size = config.group_size
  draws_per_group = {"batch": 1, "pair": size // 2, "elem": size}[config.mode]
  shape = (batch // size, draws_per_group)
  active_key, switch_key, mixup_key, cutmix_key = jax.random.split(key, 4)

  def uniform(key):
    return jax.random.uniform(key, shape, jnp.float32)

  active = uniform(active_key) < config.prob
  switch_prob = config.switch_prob if config.mixup_alpha > 0 else 1.0
  use_cutmix = active & config.use_cutmix & (uniform(switch_key) < switch_prob)
  lam = jnp.ones(shape, jnp.float32)
  edges = (jnp.zeros(shape, jnp.int32),) * 4
  if config.mixup_alpha > 0:
    lam = _beta(mixup_key, config.mixup_alpha, shape)
  if config.use_cutmix:
    edges = _draw_box(config, cutmix_key, shape, height, width)
    lam = jnp.where(use_cutmix, lam_of_box(edges, height, width).astype(lam.dtype), lam)
  lam = jnp.where(active, lam, 1)

  def per_sample(draw):
    if config.mode == "batch":
      draw = jnp.repeat(draw, size, axis=1)
    elif config.mode == "pair":
      draw = jnp.concatenate([draw, draw[:, ::-1]], axis=1)
    return draw.reshape(batch, *draw.shape[2:])

  draws = Draws(per_sample(lam), per_sample(use_cutmix), per_sample(jnp.stack(edges, axis=-1)))
  return _replicated(draws)


def _replicated(draws: Draws) -> Draws:
  """Under a mesh, has every device draw everything.

  If it were divided among devices, Beta's rejection sampling would synchronise them in
  every round.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return draws
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), draws)


def _draw_box(
  config: Mixing, key: jax.Array, shape: tuple[int, int], height: int, width: int
) -> Edges:
  """The edges of CutMix boxes, each an int32 array of the shape."""
  lam_key, row_key, column_key, height_key, width_key = jax.random.split(key, 5)
  if config.cutmix_minmax is None:
    lam = _beta(lam_key, config.cutmix_alpha, shape)
    row = _integers(row_key, shape, 0, height)
    column = _integers(column_key, shape, 0, width)
    return cutmix_box(lam, row, column, height, width, new_box=config.new_box)
  low, high = config.cutmix_minmax
  box_height = _integers(height_key, shape, int(height * low), int(height * high))
  box_width = _integers(width_key, shape, int(width * low), int(width * high))
  top = _integers(row_key, shape, 0, height - box_height + int(config.new_box))
  left = _integers(column_key, shape, 0, width - box_width + int(config.new_box))
  return top, top + box_height, left, left + box_width


_integers = functools.partial(jax.random.randint, dtype=jnp.int32)


def _beta(key: jax.Array, alpha: float, shape: tuple[int, int]) -> jax.Array:
  return jax.random.beta(key, alpha, alpha, shape, jnp.float32)


def cutmix_box(lam, row, column, height: int, width: int, *, new_box: bool) -> Edges:
  """The box of CutMix around a centre, clipped to the image.

  It uses only methods and operators, so that NumPy arrays stay NumPy arrays of their precision.

  Args:
    lam: float array: fraction of the image outside the box before clipping.
    row: integer array of the same shape: centre of the box.
    column: integer array of the same shape.
    height: of the image, in pixels.
    width: of the image, in pixels.
    new_box: whether a box with an odd side keeps its last pixel.

  Returns:
    Top, bottom, left and right, of the shape and dtype of `row`.
  """
  side = (1 - lam) ** 0.5
  box_height = (height * side).astype(row.dtype)
  box_width = (width * side).astype(row.dtype)
  return (
    (row - box_height // 2).clip(0, height),
    (row + (box_height + int(new_box)) // 2).clip(0, height),
    (column - box_width // 2).clip(0, width),
    (column + (box_width + int(new_box)) // 2).clip(0, width),
  )


def lam_of_box(edges: Edges, height: int, width: int):
  """The fraction of the image outside the boxes; float32 for JAX arrays, float64 for NumPy."""
  top, bottom, left, right = edges
  return 1 - (bottom - top) * (right - left) / (height * width)


def mix_images(images: jax.Array, draws: Draws, group_size: int) -> jax.Array:
  """Blends or pastes the partners of (batch, height, width, channels) into the images."""
  top, bottom, left, right = draws.box.T[:, :, None, None, None]
  rows = jnp.arange(images.shape[1], dtype=jnp.int32)[None, :, None, None]
  columns = jnp.arange(images.shape[2], dtype=jnp.int32)[None, None, :, None]
  inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
  lam = draws.lam[:, None, None, None].astype(sum_type(images.dtype))
  use_cutmix = draws.use_cutmix[:, None, None, None]
  weight = jnp.where(use_cutmix, 1 - inside.astype(lam.dtype), lam)
  return images * weight + partners(images, group_size) * (1 - weight)


def mix_targets(targets: jax.Array, lam: jax.Array, group_size: int) -> jax.Array:
  """Blends targets (batch, classes) with those of the partners by lam (batch,)."""
  lam = lam[:, None].astype(sum_type(targets.dtype))
  return targets * lam + partners(targets, group_size) * (1 - lam)


def partners(array: jax.Array, group_size: int) -> jax.Array:
  """The array (batch, ...) with the samples of each group in reverse order."""
  groups = array.reshape(-1, group_size, *array.shape[1:])
  return groups[:, ::-1].reshape(array.shape)


def smooth_targets(
  labels: jax.Array, num_classes: int, smoothing: float, dtype: DTypeLike = jnp.float32
) -> jax.Array:
  """(batch, num_classes) of a float type: 1 - smoothing on the label, the rest spread evenly."""
  off = smoothing / num_classes
  return jax.nn.one_hot(labels, num_classes, dtype=dtype) * (1 - smoothing) + off
