"""One checkpoint: what it says of itself and the arrays that it holds, both verified."""

import contextlib
import inspect
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from gfnet_jax.buckets import BucketPath
from gfnet_jax.checkpoints.checksums import SUMS, DamagedError, read_verified, verify_checksums
from gfnet_jax.checkpoints.metadata import METADATA, parse_metadata
from gfnet_jax.checkpoints.remote import on_disk, parts_on_disk
from gfnet_jax.text import printable

PyTree = Any
# A file of a few bytes may declare arrays of any size. Ours shrink little, but for moments and
# biases that are still zero.
MOST_BYTES_PER_BYTE, ALLOWED_BYTES = 1000, 2**26


def checkpoint_path(directory: Path | BucketPath, step: int) -> Path | BucketPath:
  """Where the checkpoint of a step is, or would be."""
  return directory / f"{step:08d}"


def read_metadata(directory: Path | BucketPath, step: int) -> dict[str, Any]:
  """The metadata of a checkpoint, which its sum and the schema of `metadata` vouch for.

  Raises:
    DamagedError: if they do not.
    UserError: if a file cannot be read, as for want of permission.
  """
  path = checkpoint_path(directory, step)
  with parts_on_disk(path, (METADATA, SUMS)) as local:
    text = read_verified(local, METADATA)
  try:
    metadata = parse_metadata(text)
  except ValueError as error:
    raise DamagedError(path, f"{METADATA}: {error}") from error
  if metadata["step"] != step:
    raise DamagedError(path, f"{METADATA} is of step {metadata['step']}, expected {step}")
  return metadata


def verify(directory: Path | BucketPath, step: int) -> None:
  """Makes sure that a checkpoint is whole.

  Raises:
    DamagedError: if a file is missing, altered or unexpected, or the metadata are not as
      `metadata` has them.
    UserError: if a file cannot be read, as for want of permission.
  """
  with on_disk(directory, step) as local:
    verify_checksums(checkpoint_path(local, step))
    read_metadata(local, step)


def saved_shapes(directory: Path, step: int, tree: str) -> dict[str, Any]:
  """The shapes and dtypes of the arrays that a checkpoint holds in one of its trees.

  Returns:
    Nested dictionaries of jax.ShapeDtypeStruct, by the names of the arrays.

  Raises:
    DamagedError: if there are none, or they are larger than the files can hold.
  """
  path = checkpoint_path(directory, step)
  try:
    with _quiet_after_a_failure(), contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
      metadata = handler.metadata((path / tree).absolute())
    shapes = jax.tree.map(
      lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), dict(metadata.tree)
    )
    declared = sum(
      math.prod(array.shape) * array.dtype.itemsize for array in jax.tree.leaves(shapes)
    )
  except Exception as error:  # Orbax and TensorStore raise many kinds
    raise _unreadable(path, tree, error) from error
  held = sum(file.lstat().st_size for file in (path / tree).rglob("*"))
  if declared > ALLOWED_BYTES + MOST_BYTES_PER_BYTE * held:
    raise DamagedError(path, f"{tree} declares {declared} bytes of arrays, and holds {held}")
  return shapes


def restore(directory: Path, step: int, trees: Mapping[str, PyTree]) -> dict[str, PyTree]:
  """Restores trees of arrays by name; call `verify` first.

  Args:
    directory: of the checkpoints.
    step: which one.
    trees: name to a tree of jax.ShapeDtypeStruct, with shardings if several devices.

  Raises:
    DamagedError: if the checkpoint holds other arrays.
  """
  args = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
  path = checkpoint_path(directory, step)
  with _quiet_after_a_failure():
    try:
      with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        return dict(reader.restore(path.absolute(), args=ocp.args.Composite(**args)))
    except Exception as error:  # as above
      raise _unreadable(path, " or ".join(trees), error) from error


def on_one_device(shapes: PyTree) -> PyTree:
  """The same jax.ShapeDtypeStructs, placed on the first local device."""
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


@contextlib.contextmanager
def _quiet_after_a_failure() -> Iterator[None]:
  """Keeps Orbax from printing a traceback for every array that was being read when one failed."""
  before = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    abandoned = inspect.iscoroutine(unraisable.object)
    if not abandoned and str(unraisable.exc_value) != "Event loop is closed":
      before(unraisable)

  sys.unraisablehook = hook
  yield
  sys.unraisablehook = before  # after a failure it stays: the last of them come later


def _unreadable(path: Path, trees: str, error: Exception) -> DamagedError:
  reason = printable(" ".join(str(error).split()) or type(error).__name__)
  return DamagedError(path, f"{trees} cannot be read ({reason})")
