"""The global filter operation: forward transform, product, inverse transform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from gfnet_jax.models.fourier_backends import BACKENDS, choose_backend
from gfnet_jax.models.products import sum_over_rows
from gfnet_jax.sharding import BATCH_AXIS


def global_filter(tokens: jax.Array, weight: jax.Array, backend: str = "auto") -> jax.Array:
  """Filters a grid of tokens in the frequency domain (paper, section 3.2, eq. 3 to 5).

  Under a mesh (`jax.set_mesh`) whose axis "data" shards the batch, every device
  transforms its own images: XLA does not partition FFTs, and would gather the whole
  batch on every device. Differentiable in reverse mode.

  Args:
    tokens: (batch, height, width, channels), float32.
    weight: (2, height, width // 2 + 1, channels), float32: the real parts, then the
      imaginary parts. Once the height is transformed back, the imaginary parts of the
      DC and Nyquist columns have no effect.
    backend: a name in `fourier_backends.BACKENDS`, or "auto" for the one measured to be
      fastest on this platform for the most similar grid. The precision of its matrix
      products is `jax.default_matmul_precision`.

  Returns:
    (batch, height, width, channels), float32.

  Raises:
    UserError: for an unknown backend.
  """
  backend = choose_backend(backend, tokens.shape[1:])
  mesh = jax.sharding.get_abstract_mesh()
  if not _is_sharded(mesh, tokens.shape[0]):
    return _filter(backend, tokens, weight)

  def filter_shard(tokens, weight):
    # Marked as varying, so that JAX sums our custom gradient over the devices.
    return _filter(backend, tokens, jax.lax.pcast(weight, BATCH_AXIS, to="varying"))

  batch = PartitionSpec(BATCH_AXIS)
  return jax.shard_map(filter_shard, mesh=mesh, in_specs=(batch, PartitionSpec()), out_specs=batch)(
    tokens, weight
  )


def _is_sharded(mesh: jax.sharding.AbstractMesh, batch_size: int) -> bool:
  """Whether the compiler would split the batch over the mesh, and we have not done so yet."""
  if BATCH_AXIS not in mesh.axis_names:
    return False
  automatic = mesh.axis_types[mesh.axis_names.index(BATCH_AXIS)] != AxisType.Manual
  shards = mesh.shape[BATCH_AXIS]
  return automatic and shards > 1 and batch_size % shards == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _filter(backend: str, tokens: jax.Array, weight: jax.Array) -> jax.Array:
  return _forward(backend, tokens, weight)[0]


def _forward(backend, tokens, weight):
  """Returns the filtered tokens, and what the gradient needs."""
  transform, invert, axes = BACKENDS[backend]
  spectrum = transform(tokens)
  filtered = invert(_multiply(spectrum, weight.transpose(axes)), tokens.shape[2])
  return filtered, (spectrum, weight)


def _backward(backend, residuals, gradient):
  """Takes one transform and one inverse; automatic differentiation would take more.

  The filter is a circular convolution, so its adjoint is the filter with the conjugate
  weight. A weight acts on its own frequency and, except in the DC and Nyquist columns,
  also on the mirrored one that the half spectrum leaves out: hence the factor of 2.
  """
  transform, invert, axes = BACKENDS[backend]
  spectrum, weight = residuals
  width = gradient.shape[2]
  gradient = transform(gradient)
  conjugate = weight * jnp.array([1.0, -1.0])[:, None, None, None]
  a, b, c, d = spectrum[:, 0], spectrum[:, 1], gradient[:, 0], gradient[:, 1]
  products = jnp.stack([a * c + b * d, a * d - b * c], axis=1)
  columns = jnp.arange(weight.shape[2])
  copies = jnp.where((columns == 0) | (2 * columns == width), 1.0, 2.0)
  return (
    invert(_multiply(gradient, conjugate.transpose(axes)), width),
    sum_over_rows(products).transpose(np.argsort(axes)) * copies[None, None, :, None],
  )


_filter.defvjp(_forward, _backward)


def _multiply(spectrum: jax.Array, weight: jax.Array) -> jax.Array:
  """The complex product of (batch, 2, ...) and (2, ...), both as pairs of real numbers."""
  a, b, c, d = spectrum[:, 0], spectrum[:, 1], weight[:1], weight[1:]
  return jnp.stack([a * c - b * d, a * d + b * c], axis=1)
