"""The global filter operation: forward transform, product, inverse transform."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import PrecisionLike
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from gfnet_jax.models.fourier_backends import choose_backend, form, like, parts
from gfnet_jax.models.gradients import custom_gradient
from gfnet_jax.models.platform import platform_of
from gfnet_jax.models.precision import filter_precision
from gfnet_jax.models.products import sum_over_rows, sum_together, sum_type
from gfnet_jax.sharding import BATCH_AXIS, reshard

SCOPE = "global_filter"  # by which profiles and compiled programs name its operations

Axes = str | tuple[str, ...] | None  # of a mesh


def global_filter(
  tokens: jax.Array, weight: jax.Array, backend: str = "auto", precision: str = "high"
) -> jax.Array:
  """Filters a grid of tokens in the frequency domain (paper, section 3.2, eq. 3 to 5).

  Under a mesh (`jax.set_mesh`) whose axis "data" shards the batch, or with tokens whose
  explicit sharding splits the batch or the channels, every device transforms its own
  part: XLA does not partition FFTs, and would gather the whole batch on every device.
  Differentiable in reverse and in forward mode.

  Args:
    tokens: (batch, height, width, channels), any float type.
    weight: (2, height, width // 2 + 1, channels), any float type: the real parts, then
      the imaginary parts. Once the height is transformed back, the imaginary parts of the
      DC and Nyquist columns have no effect. If the type is float64, everything is computed in
      that, else in float32.
    backend: a name in `fourier_backends.BACKENDS`, or "auto" for the fastest one for the most
      similar grid on the platform of the computation (see `platform_of`), as measured or,
      for want of a measurement, estimated (fourier_timings.py).
    precision: of the matrix products of a backend: "high", "highest" or "default"; see
      `filter_precision`.

  Returns:
    (batch, height, width, channels), float32 or float64.

  Raises:
    UserError: for an unknown backend or precision, or one that does not compute in float64.
  """
  tokens, weight = jnp.asarray(tokens), jnp.asarray(weight)
  weight = weight.astype(sum_type(weight.dtype))
  platform = platform_of(tokens)
  chosen = choose_backend(backend, tokens.shape[1:], platform, weight.dtype)
  if chosen != "fused" or tokens.dtype != jnp.bfloat16:  # of which its kernel reads half the bytes
    tokens = tokens.astype(weight.dtype)
  filter_tokens = _filter(chosen, platform, filter_precision(precision, platform, weight.dtype))
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
    check_vma=chosen != "fused" or platform == "tpu",  # the interpreter of kernels fails it
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
def _filter(
  name: str, platform: str, precision: PrecisionLike
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """The filter of tokens and weight, computed by a backend."""
  if name == "fused":
    functions = _in_one_kernel(precision, platform)
  else:
    functions = _by_transforms(name, platform, precision)
  return custom_gradient(*map(jax.named_scope(SCOPE), functions))


def _in_one_kernel(precision: PrecisionLike, platform: str) -> tuple[Callable, ...]:
  """What `custom_gradient` needs, each function one kernel (a sum of two in forward mode).

  Kernels have no derivatives; those of these functions are of the transforms' equals.
  """
  from gfnet_jax.models import fused_filter  # imports Pallas, which takes long

  options = dict(precision=precision, interpret=platform != "tpu")
  transform, _, pull_back_transforms = _by_transforms("separable", platform, precision)

  def filter_plainly(tokens, weight):
    return transform(tokens.astype(jnp.float32), weight)[0]

  @functools.partial(_differentiated_as, filter_plainly)
  def filter_tokens(tokens, weight):
    return fused_filter.forward(tokens, weight, **options)

  def pull_back_plainly(tokens, weight, gradient):
    return pull_back_transforms(transform(tokens.astype(jnp.float32), weight)[1], gradient)

  @functools.partial(_differentiated_as, pull_back_plainly)
  def pull_back_in_one(tokens, weight, gradient):
    return fused_filter.pull_back(tokens, weight, gradient, **options)

  def forward(tokens, weight):
    return filter_tokens(tokens, weight), (tokens, weight)

  def push_forward(residuals, tangents):
    tokens, weight = residuals
    change_of_tokens, change_of_weight = tangents
    return filter_tokens(change_of_tokens, weight) + filter_tokens(tokens, change_of_weight)

  def pull_back(residuals, gradient):
    of_tokens, of_weight = pull_back_in_one(*residuals, gradient)
    return of_tokens.astype(residuals[0].dtype), of_weight

  return forward, push_forward, pull_back


def _differentiated_as(plain: Callable, function: Callable) -> Callable:
  """A function with the derivatives of another that computes the same."""
  function = jax.custom_jvp(function)

  @function.defjvp
  def _(arguments, tangents):
    return function(*arguments), jax.jvp(plain, arguments, tangents)[1]

  return function


def _by_transforms(name: str, platform: str, precision: PrecisionLike) -> tuple[Callable, ...]:
  """What `custom_gradient` needs, by a backend's transform and its inverse."""
  backend = form(name, platform)

  def transform(tokens):
    return backend.transform(tokens, precision)

  def invert(spectrum, real, imaginary, grid):
    """Of these parts; the spectrum shows how they are to be held."""
    return backend.invert(like(spectrum, real, imaginary), grid, precision)

  def arrange(weight, part):
    """The parts of a weight in the order of a spectrum's."""
    return (x.transpose(backend.axes).reshape(part.shape[1:])[None] for x in weight)

  def forward(tokens, weight):
    """Returns the filtered tokens, and what the derivatives need."""
    spectrum = transform(tokens)
    real, imaginary = parts(spectrum)
    product = _multiply(real, imaginary, *arrange(weight, real))
    return invert(spectrum, *product, tokens.shape[1:3]), (*spectrum, weight)

  def push_forward(residuals, tangents):
    """The filter is linear in the tokens and in the weight."""
    *spectrum, weight = residuals
    tokens, change = tangents
    real, imaginary = parts(spectrum)
    of_tokens = _multiply(*parts(transform(tokens)), *arrange(weight, real))
    of_weight = _multiply(real, imaginary, *arrange(change, real))
    return invert(spectrum, *map(jnp.add, of_tokens, of_weight), tokens.shape[1:3])

  def pull_back(residuals, gradient):
    """Takes one transform and one inverse; automatic differentiation would take more.

    The filter is a circular convolution, so its adjoint is the filter with the conjugate
    weight. A weight acts on its own frequency and, except in the DC and Nyquist columns,
    also on the mirrored one that the half spectrum leaves out: hence the factor of 2.
    """
    *spectrum, weight = residuals
    grid = gradient.shape[1:3]
    transformed = transform(gradient)
    (a, b), (c, d) = parts(spectrum), parts(transformed)
    real, imaginary = arrange(weight, c)
    products = a * c + b * d, a * d - b * c
    if platform == "cpu":
      sums = parts(tuple(sum_over_rows(x)[None] for x in like(spectrum, *products)))
    else:
      sums = sum_together((0,), *products)
    columns = np.arange(weight.shape[2])
    copies = np.where((columns == 0) | (2 * columns == grid[1]), 1, 2).astype(weight.dtype)
    shape, order = [weight.shape[1:][axis] for axis in backend.axes], np.argsort(backend.axes)
    weight_gradient = jnp.stack([x.reshape(shape).transpose(order) for x in sums])
    return (
      invert(spectrum, *_multiply(c, d, real, -imaginary), grid),
      weight_gradient * copies[None, None, :, None],
    )

  return forward, push_forward, pull_back


def _multiply(
  a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The real and the imaginary part of (a + ib) (c + id)."""
  return a * c - b * d, a * d + b * c


def spatial_kernel(weight: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """The weight of `global_filter` as a circular convolution, see `GlobalFilter.kernel`.

  Args:
    weight: (2, height, width // 2 + 1, channels), float32 or float64.
    grid: (height, width) in tokens.

  Returns:
    (height, width, channels), of the type of the weight.
  """
  # Both transforms of the filter are orthonormal; their factors are left for this one to undo.
  return jnp.fft.irfft2(jax.lax.complex(*weight), s=grid, axes=(0, 1), norm="backward")
