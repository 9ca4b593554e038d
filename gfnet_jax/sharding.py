"""One mesh axis over all devices: batches are split over it, states replicated or sharded."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gfnet_jax.errors import UserError

BATCH_AXIS = "data"  # the mesh axis over which batches are sharded
Batch = dict[str, jax.Array]  # "image", "label" and more, split over the mesh


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A one-dimensional mesh over devices, by default all of all processes."""
  # In the order of the processes, whose rows of a batch follow each other.
  devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
  return Mesh(np.array(devices), (BATCH_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Copies arrays of this process to every device of all processes."""
  return jax.device_put(jax.tree.map(np.asarray, tree), replicated(mesh))


def split_batch(mesh: Mesh) -> NamedSharding:
  """Every device holds an equal share of the first axis."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def reshard(x: jax.Array, spec: PartitionSpec) -> jax.Array:
  """Splits an array with an explicit sharding in another way; returns any other as it is."""
  own = jax.typeof(x).sharding
  if AxisType.Explicit not in own.mesh.axis_types or own.spec == spec:
    return x
  return jax.sharding.reshard(x, NamedSharding(own.mesh, spec))


def shard_state(state: Any, mesh: Mesh, sharding: str) -> Any:
  """The layout of a training state over the mesh.

  Args:
    state: a tree of arrays or jax.ShapeDtypeStruct.
    mesh: of `make_mesh`.
    sharding: "replicated", or "fsdp": every array is split along its longest axis that
      the devices divide, if there is one (ZeRO, arXiv:1910.02054; PyTorch's FSDP).

  Returns:
    The tree of NamedSharding.

  Raises:
    UserError: for another name.
  """
  if sharding not in ("replicated", "fsdp"):
    raise UserError(f"sharding is {sharding!r}, expected replicated or fsdp")

  def layout(x) -> NamedSharding:
    axes = [axis for axis in range(x.ndim) if x.shape[axis] and x.shape[axis] % mesh.size == 0]
    if sharding == "replicated" or not axes:
      return replicated(mesh)
    longest = max(axes, key=lambda axis: x.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, BATCH_AXIS))

  return jax.tree.map(layout, state)


def check_batch_size(batch_size: int, accumulate_steps: int, mesh: Mesh) -> None:
  """Raises UserError unless a global batch splits evenly over the devices and its parts."""
  divisor = mesh.size * accumulate_steps
  if batch_size < 1 or batch_size % divisor:
    parts = f" times {accumulate_steps} parts" if accumulate_steps > 1 else ""
    raise UserError(
      f"data.batch_size is {batch_size}, expected a positive multiple of the {mesh.size} "
      f"devices{parts}"
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
