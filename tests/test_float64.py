"""Networks, training and files in float64: nothing is rounded to float32, random numbers apart."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gfnet_jax
from configs.digits import get_config
from gfnet_jax.checkpoints.model import read_model, save_model
from gfnet_jax.data.on_device.erasing import erase
from gfnet_jax.data.on_device.mixing import Mixing
from gfnet_jax.errors import UserError
from gfnet_jax.losses import cross_entropy
from gfnet_jax.models.fit import resize
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.initializers import initial_rngs
from gfnet_jax.models.layers import drop_path
from gfnet_jax.models.mixers import MIXERS
from gfnet_jax.models.variants import VARIANTS, create_model
from gfnet_jax.sharding import make_mesh
from gfnet_jax.training.program import build_program
from gfnet_jax.training.run import check
from gfnet_jax.weights.files import write_state_dict
from gfnet_jax.weights.state_dict import load_torch_state_dict, to_torch_state_dict

SMALL = {
  "gfnet-ti": dict(image_size=32, embed_dim=8, depth=1, num_classes=5),
  "gfnet-h-ti": dict(image_size=32, embed_dims=(8, 8, 8, 8), depths=(1, 1, 2, 1), num_classes=5),
}
CONFIG = {"name": "gfnet-ti", **SMALL["gfnet-ti"]}


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def create(name="gfnet-ti", **options):
  return create_model(name, **SMALL[name] | options, rngs=initial_rngs(0))


def shapes_below_float64(program: str) -> list[str]:
  """The shapes, such as 4x8, of all floats of 32 bits and fewer in a lowered program."""
  return re.findall(r"tensor<([\dx]*?)x?(?:complex<f32>|f32|f16|bf16)>", program)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mixer", MIXERS)
def test_nothing_in_a_loss_and_its_gradient_is_float32(mixer):
  structure, params = split(nnx.eval_shape(lambda: create(mixer=mixer, dtype=jnp.float64)))
  assert {value.dtype for value in params.values()} == {np.dtype(np.float64)}
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float64)

  def loss(params, images):
    return cross_entropy(merge(structure, params)(images), jnp.full((2, 5), 0.2)).mean()

  program = jax.jit(jax.value_and_grad(loss)).lower(params, images)
  assert program.out_info[0].dtype == np.float64
  assert shapes_below_float64(program.as_text()) == []


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("backend", ["fft", "separable", "dense"])
@pytest.mark.parametrize(("scan", "platform"), [(False, "cpu"), (True, "tpu")])
def test_nothing_of_a_backend_is_float32(backend, scan, platform, monkeypatch):
  monkeypatch.setattr("gfnet_jax.models.fourier.platform_of", lambda x: platform)
  options = dict(backend=backend, scan=scan, dtype=jnp.float64)
  structure, params = split(nnx.eval_shape(lambda: create(**options)))

  def total(params, images):
    return (merge(structure, params)(images) ** 2).sum()

  images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float64)
  program = jax.jit(jax.grad(total)).lower(params, images).as_text()
  assert shapes_below_float64(program) == []


def training_step(**changes) -> str:
  """The lowered step of a run in float64, and the state that it returns, checked."""
  config = get_config()
  pyramid = dict(image_size=32, embed_dims=(8, 8), depths=(1, 2), num_classes=5)
  config.model.update(**pyramid, name="gfnet-h-ti", patch_size=4)
  config.model.update(embed_dim=None, depth=None)
  config.update({"precision": "float64", "ema_decay": 0.9, **changes})
  program = build_program(config, make_mesh(jax.devices()[:1]))
  batch = {
    "image": jax.ShapeDtypeStruct((16, 32, 32, 3), np.uint8),
    "label": jax.ShapeDtypeStruct((16,), np.int32),
    "bad": jax.ShapeDtypeStruct((16,), np.bool),
  }
  with jax.numpy_dtype_promotion("standard"):  # optax multiplies integers and floats
    step = program.train.lower(program.shapes, {}, batch, 0.1)
  types = jax.tree.map(lambda x: (x.shape, x.dtype), (program.shapes, step.out_info))
  assert types[0] == types[1]
  return step.as_text()


@pytest.mark.usefixtures("x64")
def test_of_a_training_step_only_random_numbers_are_float32():
  plain = {"model": {"drop_path_rate": 0.0}}
  assert shapes_below_float64(training_step(**plain)) == []
  mixing = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "group_size": 2}
  shapes = shapes_below_float64(training_step(mixing=mixing, optimizer={"accumulate_steps": 2}))
  sizes = {math.prod(map(int, filter(None, shape.split("x")))) for shape in shapes}
  assert 8 in sizes  # of drop path, for half a batch
  assert max(sizes) <= 16  # at most a number for every image


def mixed(images, key):
  labels = np.arange(8, dtype=np.int32) % 4
  return Mixing(num_classes=4, group_size=2, mode="elem")(images, labels, key)


def erased(images, key):
  return erase(images, np.tile(np.array([[1, 1, 3, 3]], np.int32), (8, 1, 1)), key)


@pytest.mark.parametrize(
  "draw",
  [
    lambda images, key: drop_path(1 + images, 0.5, key),
    erased,
    pytest.param(mixed, marks=pytest.mark.slow),
  ],
  ids=["drop path", "erasing", "mixing"],
)
def test_a_seed_draws_the_same_in_float64(draw):
  images = np.random.default_rng(0).random((8, 6, 6, 3))
  expected = jax.jit(draw)(images.astype(np.float32), jax.random.key(3))
  with jax.enable_x64(True):
    drawn = jax.jit(draw)(images, jax.random.key(3))
  for actual, wanted in zip(*map(jax.tree.leaves, (drawn, expected)), strict=True):
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, wanted, rtol=1e-6, atol=1e-6)


def test_a_seed_makes_the_same_weights_in_float64():
  def initial(dtype):
    return jax.jit(lambda: split(create(dtype=dtype))[1])()

  expected = initial(jnp.float32)
  with jax.enable_x64(True):
    weights = initial(jnp.float64)
  for name, value in expected.items():
    assert weights[name].dtype == np.float64
    np.testing.assert_array_equal(np.float32(weights[name]), value, err_msg=name)


@pytest.mark.usefixtures("x64")
def test_a_resized_model_keeps_its_type():
  before = create(dtype=jnp.float64)
  after = resize(before, 64)
  assert {value.dtype for value in split(after)[1].values()} == {np.dtype(np.float64)}
  in_float32 = resize(create(), 64)
  for name, value in split(in_float32)[1].items():
    np.testing.assert_allclose(split(after)[1][name], value, rtol=1e-6, atol=1e-7, err_msg=name)


def test_float32_models_stay_so_where_64_bits_are_allowed():
  structure, params = split(create())
  images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
  expected = jax.jit(lambda params: merge(structure, params)(images))(params)
  with jax.enable_x64(True):
    structure, params = split(create())
    logits = jax.jit(lambda params: merge(structure, params)(images))(params)
  np.testing.assert_array_equal(logits, expected, strict=True)


def weights_of_float64(seed=0):
  """By official key, of a small model; no float32 number among them."""
  rng = np.random.default_rng(seed)
  return {k: rng.standard_normal(v.shape) for k, v in to_torch_state_dict(create()).items()}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["directory", "weights.safetensors", "weights.pth"])
def test_weights_of_float64_keep_their_bits(kind, tmp_path, monkeypatch):
  if kind.endswith(".pth"):
    pytest.importorskip("torch")
  weights, path = weights_of_float64(), tmp_path / kind
  model = load_torch_state_dict(create(dtype=jnp.float64), weights)
  if kind == "directory":
    save_model(path, model, CONFIG)
    found, _ = read_model(path, precision="float64")
    rounded, _ = read_model(path)
    assert {value.dtype for value in split(rounded)[1].values()} == {np.dtype(np.float32)}
  else:
    write_state_dict(path, to_torch_state_dict(model))
    variant = (gfnet_jax.GFNet, dict(embed_dim=8, depth=1))
    monkeypatch.setitem(VARIANTS, "gfnet-ti", variant)
    found = gfnet_jax.load_model(path, precision="float64").model
  for key, array in to_torch_state_dict(found).items():
    np.testing.assert_array_equal(array, weights[key], err_msg=key, strict=True)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_command_converts_there_and_back_in_float64(tmp_path, monkeypatch, in_process):
  monkeypatch.setitem(VARIANTS, "gfnet-ti", (gfnet_jax.GFNet, dict(embed_dim=8, depth=1)))
  weights = weights_of_float64()
  first, directory, second = (
    tmp_path / name for name in ("a.safetensors", "model", "b.safetensors")
  )
  write_state_dict(first, weights)
  for paths in ((first, directory), ("--to-torch", directory, second)):
    code, _, errors = in_process("convert_torch_weights.py", *paths, "--precision", "float64")
    assert code == 0, errors
  assert second.read_bytes() == first.read_bytes()


EXPECTED = "dtype is float64, of which JAX would silently make float32; set .*JAX_ENABLE_X64=1"


def test_float64_without_64_bits_is_one_line():
  config = get_config()
  config.precision = "float64"
  for attempt in (
    lambda: create(dtype=jnp.float64),
    lambda: create("gfnet-h-ti", dtype="float64"),
    lambda: gfnet_jax.GlobalFilter(4, 3, 3, dtype=np.float64, rngs=nnx.Rngs(0)),
    lambda: check(config),
  ):
    with pytest.raises(UserError, match=EXPECTED) as caught:
      attempt()
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("x64")
def test_the_fused_kernel_is_refused():
  for make in (
    lambda: create(backend="fused", dtype=jnp.float64),
    lambda: gfnet_jax.GlobalFilter(4, 3, 3, backend="fused", dtype=jnp.float64, rngs=nnx.Rngs(0)),
  ):
    with pytest.raises(UserError, match=r"'fused', which computes in float32 alone.*expected auto"):
      make()
