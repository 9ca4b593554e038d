"""The global filter operation: forward transform, product, inverse transform."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from gfnet_jax.models.fourier_backends import BACKENDS, choose_backend
from gfnet_jax.models.gradients import custom_gradient
from gfnet_jax.models.products import sum_over_rows
from gfnet_jax.sharding import BATCH_AXIS, reshard

Axes = str | tuple[str, ...] | None  # of a mesh


def global_filter(tokens: jax.Array, weight: jax.Array, backend: str = "auto") -> jax.Array:
  """Filters a grid of tokens in the frequency domain (paper, section 3.2, eq. 3 to 5).

  Under a mesh (`jax.set_mesh`) whose axis "data" shards the batch, or with tokens whose
  explicit sharding splits the batch or the channels, every device transforms its own
  part: XLA does not partition FFTs, and would gather the whole batch on every device.
  Differentiable in reverse and in forward mode.

  Args:
    tokens: (batch, height, width, channels), any float type.
    weight: (2, height, width // 2 + 1, channels), any float type: the real parts, then
      the imaginary parts. Once the height is transformed back, the imaginary parts of the
      DC and Nyquist columns have no effect.
    backend: a name in `fourier_backends.BACKENDS`, or "auto" for the one measured to be
      fastest on this platform for the most similar grid. The precision of its matrix
      products is `jax.default_matmul_precision`.

  Returns:
    (batch, height, width, channels), float32.

  Raises:
    UserError: for an unknown backend.
  """
  tokens, weight = (jnp.asarray(array, jnp.float32) for array in (tokens, weight))
  filter_tokens = _filter(choose_backend(backend, tokens.shape[1:]))
  mesh, batch, channels = _find_split(tokens)
  specs = PartitionSpec(batch, None, None, channels), PartitionSpec(None, None, None, channels)
  tokens, weight = map(reshard, (tokens, weight), specs)
  if not batch and not channels:
    return filter_tokens(tokens, weight)
  return jax.shard_map(
    filter_tokens,
    mesh=mesh,
    in_specs=specs,
    out_specs=specs[0],
    axis_names={name for name, kind in _axes(mesh) if kind != AxisType.Manual},
  )(tokens, weight)


def _find_split(tokens: jax.Array) -> tuple[AbstractMesh, Axes, Axes]:
  """The mesh, and its axes over which the batch and the channels are to be split."""
  sharding = jax.typeof(tokens).sharding
  if AxisType.Explicit in sharding.mesh.axis_types:
    batch, _, _, channels = sharding.spec
    return sharding.mesh, batch, channels
  mesh = jax.sharding.get_abstract_mesh()
  # Whether the compiler would split the batch, and we have not done so yet.
  automatic = (BATCH_AXIS, AxisType.Auto) in _axes(mesh)
  batch = automatic and mesh.shape[BATCH_AXIS] > 1 and tokens.shape[0] % mesh.shape[BATCH_AXIS] == 0
  return mesh, BATCH_AXIS if batch else None, None


def _axes(mesh: AbstractMesh) -> list[tuple[str, AxisType]]:
  return list(zip(mesh.axis_names, mesh.axis_types, strict=True))


@functools.cache
def _filter(backend: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """The filter of tokens and weight, computed by a backend."""
  functions = (_forward, _push_forward, _pull_back)
  return custom_gradient(*(functools.partial(f, backend) for f in functions))


def _forward(backend, tokens, weight):
  """Returns the filtered tokens, and what the derivatives need."""
  transform, invert, axes = BACKENDS[backend]
  spectrum = transform(tokens)
  filtered = invert(_multiply(spectrum, weight.transpose(axes)), tokens.shape[2])
  return filtered, (spectrum, weight)


def _push_forward(backend, residuals, tangents):
  """The filter is linear in the tokens and in the weight."""
  transform, invert, axes = BACKENDS[backend]
  spectrum, weight = residuals
  tokens, change = tangents
  product = _multiply(transform(tokens), weight.transpose(axes))
  return invert(product + _multiply(spectrum, change.transpose(axes)), tokens.shape[2])


def _pull_back(backend, residuals, gradient):
  """Takes one transform and one inverse; automatic differentiation would take more.

  The filter is a circular convolution, so its adjoint is the filter with the conjugate
  weight. A weight acts on its own frequency and, except in the DC and Nyquist columns,
  also on the mirrored one that the half spectrum leaves out: hence the factor of 2.
  """
  transform, invert, axes = BACKENDS[backend]
  spectrum, weight = residuals
  width = gradient.shape[2]
  gradient = transform(gradient)
  conjugate = weight * jnp.array([1, -1], weight.dtype)[:, None, None, None]
  a, b, c, d = spectrum[:, 0], spectrum[:, 1], gradient[:, 0], gradient[:, 1]
  products = jnp.stack([a * c + b * d, a * d - b * c], axis=1)
  columns = np.arange(weight.shape[2])
  copies = np.where((columns == 0) | (2 * columns == width), 1, 2).astype(weight.dtype)
  return (
    invert(_multiply(gradient, conjugate.transpose(axes)), width),
    sum_over_rows(products).transpose(np.argsort(axes)) * copies[None, None, :, None],
  )


def _multiply(spectrum: jax.Array, weight: jax.Array) -> jax.Array:
  """The complex product of (batch, 2, ...) and (2, ...), both as pairs of real numbers."""
  a, b, c, d = spectrum[:, 0], spectrum[:, 1], weight[:1], weight[1:]
  return jnp.stack([a * c - b * d, a * d + b * c], axis=1)
