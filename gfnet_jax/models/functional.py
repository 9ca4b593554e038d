"""Models as pure functions of a flat dictionary of parameters.

Training, checkpoints and conversion handle parameters as {dotted name: array}, such
as "blocks.0.filter.complex_weight" ("blocks.stacked.filter.complex_weight" for all
blocks at once in a model with `scan`). Names stay readable, sorting cannot mix up the
blocks, and `jax.jit` sees one plain pytree: `nnx.jit` takes many times as long to
dispatch.
"""

from collections.abc import Mapping

import jax
from flax import nnx

Params = dict[str, jax.Array]


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
  """Splits a model into its static structure and its parameters by dotted name."""
  structure, state = nnx.split(model, nnx.Param)
  flat = nnx.to_flat_state(state)
  return structure, {".".join(map(str, path)): value.get_value() for path, value in flat}


def merge(structure: nnx.GraphDef, params: Mapping[str, jax.Array]) -> nnx.Module:
  """Builds the model that `split` took apart, with the given parameters."""
  return nnx.merge(structure, _to_state(params))


def update(model: nnx.Module, params: Mapping[str, jax.Array]) -> None:
  """Replaces some parameters of a model, in place."""
  nnx.update(model, _to_state(params))


def _to_state(params: Mapping[str, jax.Array]) -> nnx.State:
  return nnx.from_flat_state({_path(name): nnx.Param(value) for name, value in params.items()})


def _path(name: str) -> tuple[str | int, ...]:
  return tuple(int(part) if part.isdigit() else part for part in name.split("."))
