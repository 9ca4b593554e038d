"""The filter's backends against a float64 DFT, their gradients, their choice."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import collectives
from jax.test_util import check_grads
from passes import emulate

from gfnet_jax.errors import UserError
from gfnet_jax.models import fourier, fourier_backends, products
from gfnet_jax.models.fourier import global_filter
from gfnet_jax.models.fourier_backends import (
  PAIRED,
  STACKED,
  choose_backend,
)
from gfnet_jax.models.fourier_timings import Timing
from gfnet_jax.models.variants import create_model

# Of the seven variants at 224 and 384, and odd and non-square ones.
GRIDS = [(side, side) for side in (7, 12, 14, 24, 28, 48, 56, 96)]
GRIDS += [(1, 1), (1, 4), (3, 1), (5, 8), (8, 5), (9, 13), (14, 20)]
CASES = [
  (grid, backend)
  for grid in GRIDS
  for backend in STACKED
  if backend != "dense" or grid[0] * grid[1] <= 600  # its matrix is as large as the grid, squared
]


def compute_as_on(platform, monkeypatch):
  """Has the forms of a platform computed on this one."""
  for module in (fourier, products):
    monkeypatch.setattr(module, "platform_of", lambda _: platform)


def exact_filter(tokens, weight):
  spectrum = np.fft.rfft2(tokens, axes=(1, 2), norm="ortho") * (weight[0] + 1j * weight[1])
  return np.fft.irfft2(spectrum, s=tokens.shape[1:3], axes=(1, 2), norm="ortho")


def exact_gradients(tokens, weight, gradient):
  """Of the tokens and the weight, from the definition of the half spectrum."""
  width = tokens.shape[2]
  product = np.conj(np.fft.rfft2(tokens, axes=(1, 2), norm="ortho"))
  product *= np.fft.rfft2(gradient, axes=(1, 2), norm="ortho")
  mirrored = [1 if 2 * column in (0, width) else 2 for column in range(width // 2 + 1)]
  product = product.sum(0) * np.array(mirrored)[None, :, None]
  conjugate = np.stack([weight[0], -weight[1]])
  return exact_filter(gradient, conjugate), np.stack([product.real, product.imag])


def random_arrays(height, width, batch=2, channels=3):
  """Tokens, weight and a gradient, float32."""
  rng = np.random.default_rng(height * 1000 + width)
  tokens, gradient = rng.standard_normal((2, batch, height, width, channels), np.float32)
  return tokens, rng.standard_normal((2, height, width // 2 + 1, channels), np.float32), gradient


def relative(actual, expected):
  return np.linalg.norm(np.float64(actual) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
  ("grid", "backend", "platform"),
  [
    *((*case, "cpu") for case in CASES),
    *(
      pytest.param(*case, "tpu", marks=[] if max(case[0]) <= 20 else pytest.mark.slow)
      for case in CASES
    ),
  ],
)
def test_backends_agree_with_a_float64_transform(grid, backend, platform, monkeypatch):
  """In the forms of every platform."""
  compute_as_on(platform, monkeypatch)
  arrays = random_arrays(*grid)

  @jax.jit
  def forward_and_backward(tokens, weight, gradient):
    filtered, pull_back = jax.vjp(lambda x, w: global_filter(x, w, backend), tokens, weight)
    return filtered, *pull_back(gradient)

  tokens, weight, gradient = map(np.float64, arrays)
  expected = exact_filter(tokens, weight), *exact_gradients(tokens, weight, gradient)
  for actual, exact in zip(forward_and_backward(*arrays), expected, strict=True):
    assert actual.dtype == jnp.float32
    assert relative(actual, exact) < 1e-6


@pytest.mark.parametrize("backend", STACKED)
@pytest.mark.parametrize("grid", [(4, 6), (3, 5)])
def test_gradients_agree_with_finite_differences(grid, backend):
  tokens, weight, _ = random_arrays(*grid)
  # It is linear in each, so a wide step is exact.
  apply = jax.jit(lambda x, w: global_filter(x, w, backend))
  check_grads(apply, (tokens, weight), 1, ["rev"], rtol=1e-2, eps=0.1)


@pytest.mark.parametrize("backend", STACKED)
def test_imaginary_parts_without_effect_have_no_gradient(backend):
  """At the frequencies that are their own mirror image, exactly; the rest antisymmetric."""
  tokens, weight, _ = random_arrays(4, 6)
  apply = jax.jit(lambda w: global_filter(tokens, w, backend))
  gradient = jax.grad(lambda w: (apply(w) ** 3).sum())(weight)
  imaginary = np.asarray(gradient[1])
  scale = np.abs(gradient).max()
  np.testing.assert_allclose(imaginary[np.ix_([0, 2], [0, 3])], 0, atol=1e-6 * scale)
  np.testing.assert_allclose(imaginary[1, [0, 3]], -imaginary[3, [0, 3]], atol=1e-6 * scale)
  changed = weight.copy()
  changed[1][np.ix_([0, 2], [0, 3])] += 5
  np.testing.assert_allclose(apply(changed), apply(weight), atol=1e-5)


@pytest.mark.parametrize("backend", STACKED)
@pytest.mark.parametrize("forms", [STACKED, PAIRED])
def test_one_transform_and_one_inverse_in_the_backward_pass(forms, backend, monkeypatch):
  calls, expected = [], ["transform", "invert"]

  def counted(name, function):
    return lambda *arguments: (calls.append(name), function(*arguments))[1]

  counting = {name: counted(name, getattr(forms[backend], name)) for name in expected}
  monkeypatch.setitem(forms, backend, forms[backend]._replace(**counting))
  compute_as_on("cpu" if forms is STACKED else "tpu", monkeypatch)
  fourier._filter.cache_clear()
  tokens, weight, gradient = random_arrays(4, 6)
  _, pull_back = jax.vjp(lambda x, w: global_filter(x, w, backend), tokens, weight)
  assert calls == expected
  pull_back(gradient)
  assert calls == expected * 2


def test_auto_takes_the_fastest_of_the_most_similar_shape(monkeypatch):
  times = {
    (7, 7, 512): Timing("measured", {"fft": 3.0, "dense": 1.0}),
    (56, 56, 64): Timing("measured", {"fft": 1.0, "separable": 2.0}),
    (56, 56, 512): Timing("estimated", {"fft": 2.0, "separable": 1.0}),
  }
  monkeypatch.setattr(fourier_backends, "TIMINGS", {"cpu": times})
  assert choose_backend("auto", (7, 7, 64), "cpu") == "dense"
  assert choose_backend("auto", (60, 50, 96), "cpu") == "fft"
  assert choose_backend("auto", (60, 50, 400), "cpu") == "separable"
  assert choose_backend("separable", (7, 7, 64), "cpu") == "separable"
  monkeypatch.setattr(fourier_backends, "TIMINGS", {"tpu": times})
  assert choose_backend("auto", (7, 7, 64), "cpu") == "fft", (
    "the reference where nothing was measured"
  )


def test_unknown_backends_are_named():
  with pytest.raises(UserError, match="unknown backend 'dft', expected auto or one of fft"):
    create_model("gfnet-ti", image_size=32, depth=1, backend="dft")


@pytest.mark.usefixtures("compiled_as_for_users")
@pytest.mark.parametrize(
  ("backend", "platform"), [*((name, "cpu") for name in STACKED), ("separable", "gpu")]
)
def test_shards_filter_their_own_images(backend, platform, monkeypatch):
  """The same results under a mesh of eight devices, with no collective but the gradient's sum."""
  compute_as_on(platform, monkeypatch)
  tokens, weight, gradient = random_arrays(4, 6, batch=16)

  def forward_and_backward(tokens, weight, gradient):
    filtered, pull_back = jax.vjp(lambda x, w: global_filter(x, w, backend), tokens, weight)
    return filtered, *pull_back(gradient)

  expected = jax.jit(forward_and_backward)(tokens, weight, gradient)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.NamedSharding(mesh, jax.P("data"))
  whole = jax.NamedSharding(mesh, jax.P())
  with jax.set_mesh(mesh):
    compiled = jax.jit(
      forward_and_backward,
      in_shardings=(split, whole, split),
      out_shardings=(split, split, whole),
    )
    actual = compiled(tokens, weight, gradient)
    hlo = compiled.lower(tokens, weight, gradient).compile().as_text()
  for one, other in zip(actual, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
  assert hlo.count("all-reduce(") == 1
  assert not any(name in hlo for name in ("all-gather", "all-to-all", "collective-permute"))


@pytest.mark.usefixtures("compiled_as_for_users")
def test_sums_of_the_gradient_are_gathered_on_no_mesh(monkeypatch):
  """Nor on one whose axis the filter does not know, where XLA splits it."""
  compute_as_on("gpu", monkeypatch)
  arrays = random_arrays(4, 6, batch=8, channels=8)
  mesh = jax.make_mesh((8,), ("other",), axis_types=(jax.sharding.AxisType.Auto,))
  split, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (["other"], []))

  def gradients(tokens, weight, gradient):
    return jax.vjp(lambda x, w: global_filter(x, w, "separable"), tokens, weight)[1](gradient)

  with jax.set_mesh(mesh):
    program = jax.jit(gradients, in_shardings=(split, whole, split), out_shardings=(split, whole))
    found = collectives(program.lower(*arrays).compile().as_text())
  assert set(found) == {"all-reduce"}


@pytest.mark.parametrize("backend", ["separable", "dense"])
@pytest.mark.parametrize("axis", [0, 3])
def test_the_form_for_a_tpu_takes_an_explicit_sharding(backend, axis, monkeypatch):
  """Of the batch or of the channels."""
  compute_as_on("tpu", monkeypatch)
  arrays = random_arrays(4, 6, batch=8, channels=8)

  def forward_and_backward(tokens, weight, gradient):
    filtered, pull_back = jax.vjp(lambda x, w: global_filter(x, w, backend), tokens, weight)
    return filtered, *pull_back(gradient)

  expected = jax.jit(lambda *arguments: forward_and_backward(*arguments))(*arrays)
  spec = jax.P(*(None,) * axis, "data")
  with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))):
    arrays = map(jax.device_put, arrays, (spec, jax.P(), spec))
    found = jax.jit(forward_and_backward)(*arrays)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
  ("platform", "precision", "low", "high"),
  [("tpu", "high", 1e-7, 2e-5), ("tpu", "default", 1e-3, 2e-2), ("gpu", "high", 1e-7, 2e-5)],
)
@pytest.mark.parametrize(
  ("grid", "backend"),
  [
    pytest.param(*case, marks=[] if case[0] in ((7, 7), (14, 20)) else pytest.mark.slow)
    for case in CASES
  ],
)
def test_precision_on_accelerators(grid, backend, platform, precision, low, high, monkeypatch):
  """Three passes keep what precision.py promises; one does not, and is not what is taken."""
  if backend == "fft":  # of which a TPU makes products at highest precision, whatever is asked
    precision, low, high = "default", 0, 1e-6
  compute_as_on(platform, monkeypatch)
  tokens, weight, gradient = random_arrays(*grid)

  def forward_and_backward(tokens, weight, gradient):
    filtered, pull_back = jax.vjp(
      lambda x, w: global_filter(x, w, backend, precision), tokens, weight
    )
    return filtered, *pull_back(gradient)

  found = jax.jit(functools.partial(emulate, forward_and_backward))(tokens, weight, gradient)
  arrays = [np.float64(array) for array in (tokens, weight, gradient)]
  expected = exact_filter(*arrays[:2]), *exact_gradients(*arrays)
  for a, b in zip(found, expected, strict=True):
    assert (low if max(grid) > 4 else 0) <= relative(a, b) <= high


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
def test_precision_of_the_products(platform, monkeypatch):
  """No product of a filter is left at the platform's default unless asked for."""
  compute_as_on(platform, monkeypatch)
  arrays = random_arrays(7, 7)[:2]

  def precisions(name):
    jaxpr = jax.make_jaxpr(lambda x, w: global_filter(x, w, "dense", name))(*arrays)
    return set(re.findall(r"(?:Precision\.|precision=)([A-Z]\w+)", str(jaxpr)))

  expected = {"cpu": "HIGHEST", "tpu": "HIGH", "gpu": "BF16_BF16_F32_X3"}[platform]
  assert precisions("high") == {expected}
  assert precisions("highest") == {"HIGHEST"}
  assert precisions("default") == {"DEFAULT"}
  with jax.default_matmul_precision("highest"):
    assert precisions("default") == precisions("high") == {"HIGHEST"}
  with pytest.raises(UserError, match="precision of a filter is 'low', expected one of high"):
    precisions("low")
