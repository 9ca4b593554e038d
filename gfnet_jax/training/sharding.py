"""One mesh axis over all devices; batches split over it, everything else replicated."""

from collections import deque
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gfnet_jax.errors import UserError
from gfnet_jax.models.fourier import BATCH_AXIS


def make_mesh() -> Mesh:
  """A one-dimensional mesh over all devices of all processes."""
  return jax.make_mesh((jax.device_count(),), (BATCH_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
  """Every device holds an equal share of the first axis."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises UserError unless a global batch splits evenly over the devices."""
  if batch_size < 1 or batch_size % mesh.size:
    raise UserError(
      f"data.batch_size is {batch_size}, expected a positive multiple of the {mesh.size} devices"
    )


def to_devices(
  batches: Iterator[dict[str, np.ndarray]], mesh: Mesh, ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
  """Moves every process's rows to its devices, `ahead` batches before they are used.

  Args:
    batches: this process's rows of global batches.
    mesh: of `make_mesh`.
    ahead: batches whose transfer has begun while one is computed.

  Yields:
    Global arrays, split over the mesh.
  """
  sharding = split_batch(mesh)
  queue = deque()
  for batch in batches:
    queue.append(jax.make_array_from_process_local_data(sharding, batch))
    if len(queue) > ahead:
      yield queue.popleft()
  yield from queue
