"""The global filter operation: forward transform, product, inverse transform."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

BATCH_AXIS = "data"  # the mesh axis over which batches are sharded


def global_filter(tokens: jax.Array, weight: jax.Array) -> jax.Array:
  """Filters a token grid in the frequency domain (paper, section 3.2, eq. 3 to 5).

  Under a mesh (`jax.set_mesh`) whose axis "data" shards the batch, every device
  transforms its own images: XLA does not partition FFTs by itself and would
  gather the whole batch on each device.

  Args:
    tokens: (batch, height, width, channels), float32.
    weight: (2, height, width // 2 + 1, channels), float32; real parts, then
      imaginary parts. The imaginary parts of the DC and Nyquist columns have no
      effect after the inverse transform along the height.

  Returns:
    (batch, height, width, channels), float32.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not _is_sharded(mesh, tokens.shape[0]):
    return _filter(tokens, weight)
  batch = PartitionSpec(BATCH_AXIS)
  return jax.shard_map(_filter, mesh=mesh, in_specs=(batch, PartitionSpec()), out_specs=batch)(
    tokens, weight
  )


def _is_sharded(mesh: jax.sharding.AbstractMesh, batch_size: int) -> bool:
  """Whether the batch is split over the mesh by the compiler, not yet by hand."""
  if BATCH_AXIS not in mesh.axis_names:
    return False
  automatic = mesh.axis_types[mesh.axis_names.index(BATCH_AXIS)] != AxisType.Manual
  shards = mesh.shape[BATCH_AXIS]
  return automatic and shards > 1 and batch_size % shards == 0


def _filter(tokens: jax.Array, weight: jax.Array) -> jax.Array:
  spectrum = jnp.fft.rfft2(tokens, axes=(1, 2), norm="ortho")
  spectrum *= jax.lax.complex(weight[:1], weight[1:])
  return jnp.fft.irfft2(spectrum, s=tokens.shape[1:3], axes=(1, 2), norm="ortho")
