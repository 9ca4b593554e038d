"""Products with a gradient of their own, and sums as products."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import ROOT, collectives, random_model
from jax.sharding import (
  AbstractDevice,
  AbstractMesh,
  AxisType,
  NamedSharding,
  PartitionSpec,
  use_abstract_mesh,
)
from jax.test_util import check_grads

from gfnet_jax.models import dense, fourier, layer_norm, platform, products
from gfnet_jax.models.dense import Mlp
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.platform import platform_of
from gfnet_jax.models.precision import filter_precision
from gfnet_jax.models.products import (
  as_rows,
  linear,
  repeat_rows,
  sum_over_channels,
  sum_over_rows,
  sum_per_channel,
)
from gfnet_jax.models.variants import create_model

as_for_users = pytest.mark.usefixtures("compiled_as_for_users")


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return linear(x, kernel, jnp.zeros(kernel.shape[1], kernel.dtype), kernel.dtype)


@as_for_users
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (5, 3, 7), (4, 6, 6)])
@pytest.mark.parametrize(
  ("dtype", "emulated"), [(jnp.float32, False), (jnp.bfloat16, False), (jnp.bfloat16, True)]
)
@pytest.mark.parametrize("compiled", [False, True])
def test_value_and_gradients(shape, dtype, emulated, compiled, monkeypatch):
  """Against float64 NumPy with the factors, and nothing else, rounded; (n, rows, columns)."""
  monkeypatch.setattr(products, "multiplies", lambda *_: not emulated)
  n, rows, columns = shape
  rng = np.random.default_rng(0)
  sizes = (n, rows), (rows, columns), (columns,), (n, columns)
  arrays = [rng.normal(size=size).astype(np.float32) for size in sizes]

  def value_and_gradients(x, kernel, bias, gradient):
    value, pull_back = jax.vjp(lambda *factors: linear(*factors, dtype), x, kernel, bias)
    return value, *pull_back(gradient)

  function = jax.jit(value_and_gradients) if compiled else value_and_gradients
  found = function(*map(jnp.asarray, arrays))
  x, kernel, gradient = (np.asarray(jnp.asarray(arrays[i], dtype), np.float64) for i in (0, 1, 3))
  bias, whole_gradient = (np.float64(arrays[i]) for i in (2, 3))
  expected = x @ kernel + bias, gradient @ kernel.T, x.T @ gradient, whole_gradient.sum(0)
  for a, b in zip(found, expected, strict=True):
    assert a.dtype == jnp.float32 and not a.committed
    np.testing.assert_allclose(np.float64(a), b, atol=1e-6 * max(1, np.abs(b).max()))


@as_for_users
def test_tangents_in_bfloat16():
  """Forward mode rounds the factors and sums in float32, too."""
  rng = np.random.default_rng(0)
  primals, tangents = (
    tuple(rng.normal(size=size).astype(np.float32) for size in ((4, 5), (5, 3), (3,)))
    for _ in range(2)
  )
  _, found = jax.jvp(lambda *factors: linear(*factors, jnp.bfloat16), primals, tangents)
  x, kernel, dx, dkernel = (
    np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in (*primals[:2], *tangents[:2])
  )
  np.testing.assert_allclose(found, dx @ kernel + x @ dkernel + tangents[2], atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_single_samples(compiled):
  """Through `jax.vmap` over the samples, in any axis, and over the kernel, too."""
  x = np.random.default_rng(0).standard_normal((5, 3, 4), np.float32)
  kernels = np.tile(np.arange(8, dtype=np.float32).reshape(1, 4, 2), (5, 1, 1))

  def loss(kernel, x):
    return jnp.square(product(x, kernel)).sum()

  expected = np.stack([2 * rows.T @ (rows @ kernels[0]) for rows in x])
  for axes, arguments in {
    (None, 0): (kernels[0], x),
    (None, 2): (kernels[0], np.moveaxis(x, 0, 2)),
    (0, 0): (kernels, x),
    (2, 0): (np.moveaxis(kernels, 0, 2), x),
  }.items():
    gradients = jax.vmap(jax.grad(loss), axes)
    gradients = jax.jit(gradients) if compiled else gradients
    np.testing.assert_allclose(gradients(*arguments), expected, rtol=1e-4, atol=1e-4)


@as_for_users
def test_a_cpu_multiplies_from_the_narrow_side():
  """And an optimiser reads the gradient as its other arrays, not across the rows."""

  def step(kernel, moment, x):
    gradient = jax.grad(lambda kernel: jnp.square(product(x, kernel)).sum())(kernel)
    moment = 0.9 * moment + 0.1 * gradient
    return kernel - 0.1 * moment / (1 + jnp.abs(gradient)), moment

  x, kernel = jnp.ones((64, 32)), jnp.ones((32, 8))
  hlo = jax.jit(step).lower(kernel, kernel, x).compile().as_text()
  entry = hlo[hlo.index("ENTRY") :]
  turned = re.findall(r"%(\S+) = f32\[8,32\]\{1,0\}", entry)
  assert len(turned) == 1, "the product"
  assert len(re.findall(rf"%{re.escape(turned[0])}[,)]", entry)) == 1, "what turns it back"
  assert not re.search(r"f32\[32,8\]\{0,1\}", entry)


@as_for_users
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_cpu_multiplies_rows(dtype):
  """Other products XLA gives to slower code, those of bfloat16 after a cast to float32."""
  structure, params = split(Mlp(8, 32, dtype=dtype, rngs=nnx.Rngs(0)))

  def loss(params, x):
    return jnp.square(merge(structure, params)(x)).sum()

  gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
  hlo = gradients.lower(params, jnp.ones((64, 8))).compile().as_text()
  type_of = dict(re.findall(r"%(\S+) = (\w+\[[\d,]*\])", hlo))
  found = [
    (type_of[left], type_of[right], axis)
    for left, right, axis in re.findall(r" dot\(%(\S+), %(\S+)\), lhs_contracting_dims={(\d)}", hlo)
    if not type_of[left].endswith("[64,1]")  # of a sum over rows
  ]
  name = "bf16" if dtype == jnp.bfloat16 and platform.multiplies(dtype, "cpu") else "f32"
  assert [x for x in found if "[8,64]" in x[0]] == [(f"{name}[8,64]", f"{name}[64,32]", "1")] * 2
  assert len(found) == 6
  assert all(x.startswith(f"{name}[") and axis == "1" for x, _, axis in found)


@as_for_users
@pytest.mark.parametrize("spec", [(), ("data",), (None, "data")])
def test_a_sharded_gradient_needs_no_other_collectives(spec):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  x = jax.device_put(jnp.ones((64, 32)), NamedSharding(mesh, PartitionSpec("data")))
  kernel = jax.device_put(jnp.ones((32, 8)), NamedSharding(mesh, PartitionSpec(*spec)))

  def found(product) -> dict[str, int]:
    def gradient(x, kernel):
      return jax.grad(lambda kernel: jnp.square(product(x, kernel)).sum())(kernel)

    with jax.set_mesh(mesh):
      compiled = jax.jit(gradient, out_shardings=kernel.sharding).lower(x, kernel).compile()
    return {kind: len(shapes) for kind, shapes in collectives(compiled.as_text()).items()}

  expected = found(jnp.matmul)
  assert expected
  assert found(product) == expected


@as_for_users
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_tokens_are_multiplied_as_rows_are(dtype):
  """(2, 3, 5, rows), as on a TPU: the same sums in another order."""
  rng = np.random.default_rng(0)
  sizes = (2, 3, 5, 4), (4, 6), (6,), (2, 3, 5, 6)
  x, kernel, bias, gradient = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes)

  def value_and_gradients(x, gradient):
    value, pull_back = jax.vjp(lambda *arguments: linear(*arguments, dtype), x, kernel, bias)
    return value, *pull_back(gradient)

  found = value_and_gradients(x, gradient)
  wanted = value_and_gradients(x.reshape(-1, 4), gradient.reshape(-1, 6))
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_allclose(a.reshape(b.shape), b, atol=2e-6 * np.abs(b).max())
  tangents = (x, kernel, bias)
  _, found = jax.jvp(lambda *arguments: linear(*arguments, dtype), tangents, tangents)
  rows = (x.reshape(-1, 4), kernel, bias)
  _, wanted = jax.jvp(lambda *arguments: linear(*arguments, dtype), rows, rows)
  np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=1e-5)


@pytest.mark.parametrize(
  ("name", "shape"), [("cpu", (18, 96)), ("gpu", (18, 96)), ("tpu", (2, 3, 3, 96))]
)
def test_only_a_tpu_keeps_the_axes_of_tokens(name, shape, monkeypatch):
  monkeypatch.setattr(products, "platform_of", lambda _: name)
  assert as_rows(jnp.zeros((2, 3, 3, 96))).shape == shape


def test_the_network_is_the_same_in_the_form_of_every_platform(monkeypatch):
  """Logits and gradients, as on a CPU but for rounding."""
  options = dict(patch_size=16, embed_dim=8, depth=1, num_classes=4, drop_path_rate=0.5)
  model = random_model(lambda: create_model("gfnet-ti", image_size=32, **options), 0.1)
  structure, params = split(model)
  images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)

  def logits_and_gradients(params, images):
    def logits(params):
      return merge(structure, params)(images, key=jax.random.key(1))

    value, pull_back = jax.vjp(logits, params)
    return value, *jax.tree.leaves(pull_back(jnp.cos(jnp.arange(16.0)).reshape(4, 4)))

  found = {}
  for name in ("cpu", "gpu", "tpu"):
    for module in (dense, layer_norm, products):
      monkeypatch.setattr(module, "platform_of", lambda _, name=name: name)
    # A function of its own, so that it is traced anew.
    found[name] = jax.jit(lambda *arguments: logits_and_gradients(*arguments))(params, images)
  for name in ("gpu", "tpu"):
    for a, b in zip(found[name], found["cpu"], strict=True):
      assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), name


def test_the_form_for_a_tpu_takes_a_batch_of_explicit_sharding(monkeypatch):
  for module in (dense, fourier, layer_norm, products):
    monkeypatch.setattr(module, "platform_of", lambda _: "tpu")
  options = dict(patch_size=8, embed_dim=8, depth=1, num_classes=4)
  structure, params = split(
    random_model(lambda: create_model("gfnet-ti", image_size=32, **options), 0.1)
  )
  params = {name: np.asarray(value) for name, value in params.items()}
  images = np.random.default_rng(0).standard_normal((8, 32, 32, 3), np.float32)

  def loss(params, images):
    return (merge(structure, params)(images) ** 2).sum()

  compute = jax.value_and_grad(loss, (0, 1))
  expected = jax.jit(lambda *arguments: compute(*arguments))(params, images)
  with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))):
    params = jax.device_put(params, PartitionSpec())
    found = jax.jit(compute)(params, jax.device_put(images, PartitionSpec("data")))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("spec", [(), ("data",)])
@pytest.mark.parametrize("sizes", [(8, 32), (32, 8)])
def test_gradients_with_explicit_sharding(devices, spec, sizes):
  """On a mesh of one device as on one of several."""
  rng = np.random.default_rng(0)
  x, kernel, bias, gradient = (
    rng.standard_normal(shape, np.float32)
    for shape in ((16, sizes[0]), sizes, sizes[1:], (16, sizes[1]))
  )
  mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Explicit,))
  with jax.set_mesh(mesh):
    rows = PartitionSpec("data")
    arguments = jax.device_put((x, kernel, bias), (rows, PartitionSpec(*spec), PartitionSpec()))
    _, pull_back = jax.vjp(lambda *arguments: linear(*arguments, jnp.float32), *arguments)
    found = pull_back(jax.device_put(gradient, rows))
  expected = gradient @ kernel.T, x.T @ gradient, gradient.sum(0)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@as_for_users
def test_sums_over_several_gpus_are_reduced_not_gathered(monkeypatch):
  monkeypatch.setattr(products, "platform_of", lambda _: "gpu")
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  x = jax.device_put(jnp.ones((64, 4)), NamedSharding(mesh, PartitionSpec("data")))
  with jax.set_mesh(mesh):
    compiled = jax.jit(lambda x: sum_per_channel(x, 2 * x)).lower(x).compile()
  assert set(collectives(compiled.as_text())) == {"all-reduce"}


@pytest.mark.parametrize(("name", "kept"), [("cpu", 1), ("tpu", 1), ("gpu", 2)])
def test_what_an_mlp_keeps_of_its_widest_arrays(name, kept, monkeypatch):
  """What is before the GELU; on a GPU, what is behind it, too."""
  for module in (dense, products):
    monkeypatch.setattr(module, "platform_of", lambda _: name)
  structure, params = split(Mlp(8, 32, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
  _, pull_back = jax.vjp(lambda params, x: merge(structure, params)(x), params, jnp.ones((2, 3, 8)))
  wide = [x for x in jax.tree.leaves(pull_back) if x.size == 2 * 3 * 32]
  assert [x.dtype for x in wide] == [jnp.bfloat16] * kept


@pytest.mark.parametrize("name", ["cpu", "gpu", "tpu"])
def test_sums_and_repetitions_are_each_others_gradients(name, monkeypatch):
  monkeypatch.setattr(products, "platform_of", lambda _: name)
  x = jax.random.normal(jax.random.key(0), (5, 2, 3))
  weights = jnp.array([1.0, -2.0, 3.0])
  sums = sum_over_channels(x[:, 0], weights)
  np.testing.assert_allclose(sums, np.float64(x[:, 0]) @ np.float64(weights)[:, None], atol=1e-6)
  np.testing.assert_allclose(sum_over_rows(x), x.sum(0), atol=1e-6)
  totals = sum_per_channel(x[:, 0], -x[:, 1])
  np.testing.assert_allclose(totals, (x[:, 0].sum(0), -x[:, 1].sum(0)), atol=1e-6)
  check_grads(lambda *rows: sum_per_channel(*rows), (x[:, 0], x[:, 1]), order=2, atol=1e-2)
  np.testing.assert_array_equal(repeat_rows(x, 4), jnp.stack([x] * 4))
  _, pull_back = jax.vjp(lambda row: repeat_rows(row, 5), x[0])
  np.testing.assert_allclose(pull_back(x)[0], x.sum(0), atol=1e-6)


def test_the_gradient_of_rounded_activations_is_rounded():
  """It is of their type; those of kernel and bias are not."""
  x, kernel, bias = jnp.ones((4, 3), jnp.bfloat16), jnp.ones((3, 2)), jnp.ones(2)
  value, pull_back = jax.vjp(lambda *factors: linear(*factors, jnp.bfloat16), x, kernel, bias)
  assert [g.dtype for g in (value, *pull_back(value))] == [
    jnp.float32,
    jnp.bfloat16,
    jnp.float32,
    jnp.float32,
  ]


@as_for_users
def test_gradients_of_biases_in_bfloat16():
  """As close to those in float32 as those of kernels; sums in bfloat16 were three times as far."""
  gradients = {}
  images = np.random.default_rng(0).standard_normal((16, 64, 64, 3)).astype(np.float32)
  options = dict(name="gfnet-xs", image_size=64, depth=1)
  for dtype in (jnp.float32, jnp.bfloat16):
    model = random_model(lambda dtype=dtype: create_model(dtype=dtype, **options), 0.02)
    structure, params = split(model)

    @jax.jit
    def gradient(params, images, structure=structure):
      def loss(params):
        return jax.nn.logsumexp(merge(structure, params)(images), axis=-1).mean()

      return jax.grad(loss)(params)

    gradients[dtype] = gradient(params, images)

  def error(name):
    exact = gradients[jnp.float32][name]
    return np.linalg.norm(gradients[jnp.bfloat16][name] - exact) / np.linalg.norm(exact)

  for layer in ("patch_embed.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"):
    assert error(f"{layer}.bias") <= min(1e-2, 1.5 * error(f"{layer}.kernel")), layer


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("flags\t\t: fpu avx512f avx512_bf16\n", True),
    ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
    ("flags\t\t: fpu avx512f\nbugs\t: avx512_bf16\n", False),
    (None, False),
  ],
)
def test_processors_with_bfloat16_products(text, expected, monkeypatch, tmp_path):
  path = tmp_path / "cpuinfo"
  if text:
    path.write_text(text)
  monkeypatch.setattr(platform, "Path", lambda _: path)
  platform._cpu_has_bfloat16_products.cache_clear()
  assert platform.multiplies(jnp.bfloat16, "cpu") == expected
  assert platform.multiplies(jnp.bfloat16, "tpu") and not platform.multiplies(jnp.float16, "cpu")
  platform._cpu_has_bfloat16_products.cache_clear()


@pytest.mark.parametrize(
  ("capability", "expected"),
  [
    ("7.5", False),
    ("8.0", True),
    ("10.0", True),
    ("gfx942", True),
    ("gfx906", False),
    ("gfx1030", False),
    ("", False),
    (None, True),
  ],
)
def test_gpus_with_bfloat16_products(capability, expected, monkeypatch, request):
  """NVIDIA's T4 has none; a machine without a GPU compiles for a recent one."""
  request.addfinalizer(platform._gpu_has_bfloat16_products.cache_clear)

  def devices(backend):
    assert backend == "gpu"
    if capability is None:
      raise RuntimeError("Unknown backend gpu")
    return [types.SimpleNamespace(compute_capability=capability)]

  monkeypatch.setattr(jax, "local_devices", devices)
  platform._gpu_has_bfloat16_products.cache_clear()
  assert platform.multiplies(jnp.bfloat16, "gpu") == expected
  three_passes, float32 = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3, jax.lax.Precision.HIGHEST
  assert filter_precision("high", "gpu") == (three_passes if expected else float32)
  assert filter_precision("high", "gpu", jnp.float64) == float32


def test_the_platform_is_that_of_the_mesh():
  """Of a mesh whose devices this machine lacks, too; and nobody asks for the default backend."""
  device = AbstractDevice("TPU v5 lite", None, "tpu")
  mesh = AbstractMesh((8,), ("data",), abstract_device=device)
  x = jnp.ones(8)
  assert platform_of(x) == "cpu"
  with use_abstract_mesh(mesh):
    assert platform_of(x) == "tpu"
  with use_abstract_mesh(
    AbstractMesh((8,), ("data",), abstract_device=AbstractDevice("H100", None, "cuda"))
  ):
    assert platform_of(x) == "gpu"
  with jax.default_device(jax.devices("cpu")[1]):
    assert platform_of(x) == "cpu"
  for path in (ROOT / "gfnet_jax").rglob("*.py"):
    assert "default_backend" not in path.read_text(), path
