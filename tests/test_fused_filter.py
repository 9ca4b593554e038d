"""The fused kernel against a float64 DFT, interpreted; and that it lowers for a TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_fourier import exact_filter, exact_gradients, random_arrays, relative

from gfnet_jax.errors import UserError
from gfnet_jax.models import fused_filter, fused_layout
from gfnet_jax.models.fourier import global_filter

DEFAULT, HIGH, HIGHEST = jax.lax.Precision
BOUND = 2e-5  # what three passes of bfloat16 promise
SIDES = (7, 12, 14, 24, 28, 48, 56, 96)  # of all seven networks, at 224 and 384


@pytest.fixture
def small_steps(monkeypatch):
  """Several steps of several images and of a few channels: less to compile."""
  run.clear_cache()
  monkeypatch.setattr(fused_filter, "UNROLLED_ROWS", 1)
  monkeypatch.setattr(fused_layout, "MOST_IMAGES", 2)
  monkeypatch.setattr(fused_filter, "LANES", 4)
  yield
  run.clear_cache()


@functools.partial(jax.jit, static_argnames="precision")
def run(tokens, weight, gradient, precision=HIGH):
  """Everything that the kernels compute: filtered tokens and two gradients."""
  options = {"precision": precision, "interpret": True}
  filtered = fused_filter.forward(tokens, weight, **options)
  return filtered, *fused_filter.pull_back(tokens, weight, gradient, **options)


def errors(arrays, precision=HIGH):
  """Of filtered tokens and gradients, relative to a float64 FFT of the same numbers."""
  actual = run(*arrays, precision=precision)
  assert all(array.dtype == jnp.float32 for array in actual)
  tokens, weight, gradient = (np.asarray(array, np.float64) for array in arrays)
  expected = exact_filter(tokens, weight), *exact_gradients(tokens, weight, gradient)
  assert [array.shape for array in actual] == [array.shape for array in expected]
  return np.array([relative(*pair) for pair in zip(actual, expected, strict=True)])


def in_bfloat16(arrays):
  tokens, weight, gradient = arrays
  return jnp.asarray(tokens, jnp.bfloat16), weight, jnp.asarray(gradient, jnp.bfloat16)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("grid", [(5, 8), (9, 7)])
def test_three_passes_agree_with_a_float64_transform(grid):
  assert (errors(random_arrays(*grid, batch=4, channels=6)) < BOUND).all()


@pytest.mark.usefixtures("small_steps")
def test_bfloat16_tokens_agree_with_a_float64_transform():
  assert (errors(in_bfloat16(random_arrays(6, 5))) < BOUND).all()


@pytest.mark.usefixtures("small_steps")
def test_one_pass_only_on_request():
  one_pass = errors(random_arrays(4, 3), DEFAULT)
  assert ((one_pass > 1e-3) & (one_pass < 1e-2)).all()
  assert [fused_layout.count_passes(precision) for precision in jax.lax.Precision] == [1, 3, 3]


@pytest.mark.usefixtures("small_steps")
def test_images_and_channels_do_not_affect_each_other():
  tokens, weight, gradient = random_arrays(3, 4, batch=4, channels=6)
  broken_tokens, broken_gradient = tokens.copy(), gradient.copy()
  broken_tokens[1, 2, 3, 4] = broken_gradient[1, 0, 1, 4] = np.nan
  expected = run(tokens, weight, gradient)
  actual = run(broken_tokens, weight, broken_gradient)
  for one, other, axes in zip(actual, expected, [(1, 2), (1, 2), (0, 1, 2)], strict=True):
    broken = np.isnan(one)
    bad = np.zeros((4, 6), bool)
    bad[1, 4] = True
    np.testing.assert_array_equal(broken.all(axes), bad if len(axes) == 2 else bad.any(0))
    np.testing.assert_array_equal(one, np.where(broken, one, other))


@pytest.mark.parametrize(
  ("shape", "images"),
  [
    ((128, 7, 7, 768), 16),
    ((128, 28, 28, 192), 8),
    ((128, 56, 56, 96), 2),
    ((6, 96, 96, 96), 1),
    ((13, 14, 14, 384), 13),
    ((17, 14, 14, 384), 1),
  ],
)
def test_a_step_takes_as_many_images_as_divide_the_batch_and_fit(shape, images):
  assert fused_layout.choose_layout(shape).images == images


def lower_for_a_tpu(height, width, dtype=jnp.float32):
  """Both kernels for 16 images of 130 channels, on 8 devices: the program as text."""
  tokens = jax.ShapeDtypeStruct((16, height, width, 130), dtype)
  weight = jax.ShapeDtypeStruct((2, height, width // 2 + 1, 130), jnp.float32)
  options = {"precision": HIGH, "interpret": False}

  @functools.partial(
    jax.shard_map,
    mesh=jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
    in_specs=(jax.P("data"), jax.P()),
    out_specs=(jax.P("data"), jax.P()),
  )
  def gradients(tokens, weight):
    weight = jax.lax.pcast(weight, "data", to="varying")
    filtered = fused_filter.forward(tokens, weight, **options)
    tokens, weight = fused_filter.pull_back(tokens, weight, filtered, **options)
    return tokens, jax.lax.psum(weight, "data")

  return jax.jit(gradients).trace(tokens, weight).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_tpus(dtype):
  assert lower_for_a_tpu(14, 15, dtype).count("tpu_custom_call") == 2


def test_a_grid_that_does_not_fit_is_refused():
  with pytest.raises(UserError, match=r"grid of 200 x 200 tokens.* MiB.*choose another backend"):
    lower_for_a_tpu(200, 200)


def test_cost_of_a_kernel():
  """Counted by hand, for two images of 2 x 2 tokens and one channel, which fills 128 lanes."""
  tokens, weight = jnp.ones((2, 2, 2, 1)), jnp.ones((2, 2, 2, 1))
  run = functools.partial(fused_filter.forward, precision=HIGH, interpret=True)
  (call,) = (
    e for e in jax.make_jaxpr(run)(tokens, weight).eqns if e.primitive.name == "pallas_call"
  )
  cost = call.params["cost_estimate"]
  # Rows of (2, 2) as (part, column): 6 x 2 and 2 x 6 with the pitch of 3. Columns: 16 x 4 and back.
  once = 2 * (6 * 2 + 2 * 6) + 2 * (16 * 4 + 4 * 16)
  assert cost.flops == 2 * 3 * once * 2
  in_and_out, weights = 2 * 4 * 8 * 128, 4 * 2 * 2 * 8 * 128
  assert cost.bytes_accessed == in_and_out + weights + 2 * 3 * (2 * 6 * 2 + 2 * 16 * 4)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_for_users")
@pytest.mark.parametrize("cast", [tuple, in_bfloat16])
@pytest.mark.parametrize("side", SIDES)
def test_grids_of_all_networks(side, cast):
  assert (errors(cast(random_arrays(side, side))) < BOUND).all()


@pytest.mark.slow
@pytest.mark.usefixtures("small_steps")
def test_float32_gradients_of_bfloat16_tokens():
  tokens, weight, gradient = random_arrays(6, 5)
  assert (errors((jnp.asarray(tokens, jnp.bfloat16), weight, gradient)) < BOUND).all()


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_for_users")
def test_a_block_of_channels_in_full_and_one_in_part():
  assert (errors(random_arrays(4, 6, batch=3, channels=130)) < BOUND).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.integers(1, 3))
def test_any_grid(height, width, batch, channels):
  assert (errors(random_arrays(height, width, batch, channels)) < BOUND).all()


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("kind", [None, AxisType.Auto, AxisType.Explicit])
def test_as_a_backend(kind):
  """Values, gradients and their derivatives, on one device and on a mesh of two."""
  tokens, weight, gradient = random_arrays(4, 3, batch=4, channels=2)

  @functools.partial(jax.jit, static_argnums=0)
  def compute(backend, tokens, weight, gradient):
    filtered, pull_back = jax.vjp(lambda x, w: global_filter(x, w, backend), tokens, weight)
    return filtered, *pull_back(gradient)

  expected = compute("fft", tokens, weight, gradient)
  if kind is None:
    found = compute("fused", tokens, weight, gradient)
  else:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    with jax.set_mesh(mesh):
      found = compute(
        "fused",
        jax.device_put(tokens, rows),
        jax.device_put(weight, whole),
        jax.device_put(gradient, rows),
      )
  for a, b in zip(found, expected, strict=True):
    assert relative(a, np.float64(b)) < BOUND


def test_derivatives_of_derivatives():
  """Of the kernels there are none: they are those of the transforms."""
  tokens, weight, _ = random_arrays(2, 2, batch=1, channels=1)

  def curved(backend):
    return lambda x, w: jnp.sin(global_filter(x, w, backend)).sum()

  found, expected = (
    jax.jit(jax.hessian(curved(backend), (0, 1)))(tokens, weight) for backend in ("fused", "fft")
  )
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_tokens_of_bfloat16_are_differentiated_twice():
  """As those of float32 that they stand for."""
  tokens, weight, _ = random_arrays(2, 2, batch=1, channels=1)
  tokens = jnp.asarray(tokens, jnp.bfloat16)

  def curved(backend):
    return lambda w, x: jnp.sin(global_filter(x, w, backend)).sum()

  found = jax.jit(jax.hessian(curved("fused")))(weight, tokens)
  expected = jax.jit(jax.hessian(curved("fft")))(weight, tokens)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  mixed = jax.jit(jax.jacfwd(jax.grad(curved("fused"), 1), 0))(weight, tokens)
  assert mixed.dtype == jnp.bfloat16


def test_tokens_of_bfloat16_have_such_gradients():
  tokens, weight, gradient = random_arrays(3, 4, batch=2, channels=2)
  filtered, pull_back = jax.vjp(
    lambda x, w: global_filter(x, w, "fused"), jnp.asarray(tokens, jnp.bfloat16), weight
  )
  of_tokens, of_weight = pull_back(gradient)
  assert (filtered.dtype, of_tokens.dtype, of_weight.dtype) == (
    jnp.float32,
    jnp.bfloat16,
    jnp.float32,
  )


@pytest.mark.parametrize("batch", ["b", "0"])
def test_batches_that_it_refuses(batch):
  (size,) = jax.export.symbolic_shape(batch) if batch == "b" else (0,)
  tokens = jax.ShapeDtypeStruct((size, 3, 4, 2), jnp.float32)
  with pytest.raises(UserError, match="expected a known size of at least 1"):
    jax.eval_shape(lambda x: global_filter(x, jnp.ones((2, 3, 3, 2)), "fused"), tokens)
