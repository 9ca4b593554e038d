"""The mixers against independent versions in NumPy and PyTorch, and their numbers of parameters."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from gfnet_jax.errors import UserError
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.mixers import MIXERS
from gfnet_jax.models.resize import resize_bicubic
from gfnet_jax.models.spatial_mlp import SpatialMlp
from gfnet_jax.models.variants import create_model

PARAMETERS = {  # of a network of 12 blocks and width 384 at 224 pixels, with 1000 classes
  "identity": 14_953_576,
  "fnet": 14_953_576,
  "conv3": 14_999_656,
  "conv5": 15_073_384,
  "conv7": 15_183_976,
  "spatial-mlp": 15_416_920,
  "attention": 22_049_896,
  "global-filter": 15_985_768,
  # Half a filter, half a 3 x 3 convolution without bias, two norms; by hand.
  "global-local": 14_953_576 + 12 * (2 * 14 * 8 * 192 + 9 * 192 + 4 * 384),
}
GRIDS = [(3, 5), pytest.param((1, 4), marks=pytest.mark.slow)]


def make(mixer, dim=4, grid=(3, 5), dtype=jnp.float32, **options):
  """The mixer with parameters far from their small initial values."""
  options |= dict(backend="auto", dtype=dtype)
  layer = nnx.eval_shape(lambda: MIXERS[mixer](dim, *grid, rngs=nnx.Rngs(0), **options))
  structure, params = split(layer)
  rng = np.random.default_rng(0)
  return structure, {
    name: rng.normal(scale=dim**-0.5, size=value.shape).astype(value.dtype)
    for name, value in params.items()
  }


def tokens_of(grid, dim=4, batch=2):
  shape = (batch, *grid, dim)
  return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def convolve(torch, x, kernel, bias=None):
  """(batch, channels, height, width) by (size, size, channels)."""
  weight, channels = kernel.permute(2, 0, 1)[:, None], kernel.shape[-1]
  padding = kernel.shape[0] // 2
  return torch.nn.functional.conv2d(x, weight, bias, padding=padding, groups=channels)


def filtered(torch, x, weight):
  """(batch, channels, height, width) by (2, height, width // 2 + 1, channels)."""
  spectrum = torch.fft.rfft2(x, norm="ortho")
  spectrum = spectrum * torch.complex(weight[0], weight[1]).permute(2, 0, 1)
  return torch.fft.irfft2(spectrum, s=x.shape[2:], norm="ortho")


def normalised(torch, x, params, name):
  weights = (params[f"{name}.scale"], params[f"{name}.bias"])
  return torch.nn.functional.layer_norm(x, x.shape[-1:], *weights, eps=1e-6)


def attend(torch, x, params):
  """By PyTorch's own layer, whose weights are (out, in)."""
  dim = x.shape[-1]
  layer = torch.nn.MultiheadAttention(dim, max(1, dim // 64), batch_first=True, dtype=torch.float64)
  weights = {
    "in_proj_weight": params["qkv.kernel"].T,
    "in_proj_bias": params["qkv.bias"],
    "out_proj.weight": params["proj.kernel"].T,
    "out_proj.bias": params["proj.bias"],
  }
  rows = x.flatten(1, 2)
  inputs = (rows, rows, rows)
  return torch.func.functional_call(layer, weights, inputs)[0].reshape(x.shape)


def reference(torch, mixer, x, params):
  """What the mixer makes of tokens (batch, height, width, channels), in PyTorch."""
  first = x.permute(0, 3, 1, 2)
  if mixer == "identity":
    return x
  if mixer == "fnet":
    flat = x.flatten(1, 2).to(torch.complex128)
    return torch.fft.fft(torch.fft.fft(flat, dim=2), dim=1).real.reshape(x.shape)
  if mixer.startswith("conv"):
    return convolve(torch, first, params["kernel"], params["bias"]).permute(0, 2, 3, 1)
  if mixer == "spatial-mlp":
    mixed = torch.nn.functional.linear(first.flatten(2), params["kernel"].T, params["bias"])
    return mixed.reshape(first.shape).permute(0, 2, 3, 1)
  if mixer == "global-filter":
    return filtered(torch, first, params["complex_weight"]).permute(0, 2, 3, 1)
  if mixer == "attention":
    return attend(torch, x, params)
  near, far = normalised(torch, x, params, "pre_norm").permute(0, 3, 1, 2).chunk(2, dim=1)
  near = convolve(torch, near, params["kernel"])
  far = filtered(torch, far, params["complex_weight"])
  joined = torch.stack([near, far], dim=2).flatten(1, 2)  # as in the official hornet.py
  return normalised(torch, joined.permute(0, 2, 3, 1), params, "post_norm")


def relative(found, expected):
  expected = np.asarray(expected)
  return np.abs(np.asarray(found) - expected).max() / max(np.abs(expected).max(), 1e-30)


def differences(mixer, dim, grid, *, results=np.float32, **options):
  """Of values and all gradients, of a type, from those of PyTorch in float64, by name."""
  torch = pytest.importorskip("torch")
  structure, params = make(mixer, dim, grid, **options)
  tokens = tokens_of(grid, dim).astype(results)
  # The gradient of a sum of squares would vanish behind a norm.
  cotangent = np.random.default_rng(2).standard_normal(tokens.shape).astype(results)

  @jax.jit
  def compute(params, tokens):
    mixed, pull_back = jax.vjp(lambda p, x: merge(structure, p)(x), params, tokens)
    return mixed, *pull_back(cotangent)

  found = mixed, of_params, of_tokens = compute(params, tokens)
  assert {array.dtype for array in jax.tree.leaves(found)} == {np.dtype(results)}
  exact = {n: torch.tensor(p, dtype=torch.float64, requires_grad=True) for n, p in params.items()}
  x = torch.tensor(tokens, dtype=torch.float64, requires_grad=True)
  expected = reference(torch, mixer, x, exact)
  expected.backward(torch.tensor(cotangent, dtype=torch.float64))
  return {
    "value": relative(mixed, expected.detach()),
    "tokens": relative(of_tokens, x.grad),
    **{name: relative(of_params[name], exact[name].grad) for name in params},
  }


@pytest.mark.parametrize("mixer", PARAMETERS)
def test_the_numbers_of_parameters(mixer):
  model = nnx.eval_shape(lambda: create_model("gfnet-xs", mixer=mixer))
  assert sum(math.prod(value.shape) for value in split(model)[1].values()) == PARAMETERS[mixer]


def test_every_mixer_is_tested():
  assert set(PARAMETERS) == set(MIXERS)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("mixer", PARAMETERS)
def test_values_and_gradients_are_those_of_pytorch(mixer, grid):
  found = differences(mixer, 4, grid)
  for name, difference in found.items():
    if name != "qkv.bias":  # a part of it has no effect, so that its gradient is 0
      assert difference < 3e-6, name


@pytest.mark.parametrize("mixer", PARAMETERS)
def test_in_float64_they_are_those_of_pytorch_to_the_last_bits(mixer):
  with jax.enable_x64(True):
    found = differences(mixer, 4, (3, 5), results=np.float64, dtype=jnp.float64)
  for name, difference in found.items():
    if name != "qkv.bias":  # as above
      assert difference < 1e-14, name


def test_attention_of_several_heads():
  assert max(differences("attention", 128, (2, 3)).values()) < 3e-6


@pytest.mark.parametrize(
  ("dim", "heads"), [(4, 1), (64, 1), (96, 1), (135, 1), (384, 6), (768, 12)]
)
def test_heads_have_64_channels_where_that_divides(dim, heads):
  options = dict(backend="auto", dtype=jnp.float32)
  layer = nnx.eval_shape(lambda: MIXERS["attention"](dim, 2, 2, rngs=nnx.Rngs(0), **options))
  assert layer.heads == heads


@pytest.mark.parametrize("mixer", ["spatial-mlp", "attention"])
def test_products_of_bfloat16_factors_are_summed_in_float32(mixer):
  (structure, params), tokens = make(mixer, grid=(4, 6), dtype=jnp.bfloat16), tokens_of((4, 6))
  exact, _ = make(mixer, grid=(4, 6))

  def loss(params, tokens, structure):
    return (merge(structure, params)(tokens) * jnp.cos(tokens)).sum()

  program = jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
  products = re.findall(r"(\w+)\[[\d,]*\] = dot_general", str(program(params, tokens, structure)))
  assert len(products) >= (12 if mixer == "attention" else 3)
  assert set(products) == {"f32"}
  compute = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
  found, expected = (compute(params, tokens, s) for s in (structure, exact))
  assert all(array.dtype == jnp.float32 for array in jax.tree.leaves(found))
  rounding = jax.tree.leaves(jax.tree.map(relative, found, expected))
  assert 1e-5 < max(rounding) < 5e-2


@pytest.mark.parametrize("mixer", ["fnet", "conv5", "global-local"])
def test_what_is_no_matrix_product_of_the_model_stays_float32(mixer):
  grid = (4, 6)
  results = []
  for dtype in (jnp.float32, jnp.bfloat16):
    structure, params = make(mixer, grid=grid, dtype=dtype)
    results.append(jax.jit(merge(structure, params).__call__)(tokens_of(grid)))
  np.testing.assert_array_equal(*results)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["conv3", "attention"])
def test_forward_mode_and_second_derivatives(mixer):
  structure, params = make(mixer, 2, (2, 3))
  params = {name: 0.3 * value for name, value in params.items()}

  def function(params, tokens):
    return jnp.sin(merge(structure, params)(tokens))

  arguments = (params, 0.3 * tokens_of((2, 3), 2, batch=1))
  check_grads(jax.jit(function), arguments, 2, ["fwd", "rev"], rtol=3e-2, atol=3e-2, eps=0.03)


def test_fnet_by_hand():
  """Tokens 1, 2 of one channel: their sum, and their difference."""
  layer = MIXERS["fnet"](1, 1, 2, backend="auto", dtype=jnp.float32, rngs=nnx.Rngs(0))
  mixed = layer(jnp.array([1.0, 2.0]).reshape(1, 1, 2, 1))
  np.testing.assert_allclose(mixed.ravel(), [3, -1], atol=1e-6)


def test_a_convolution_by_hand():
  """A window that takes the right neighbour moves the tokens to the left."""
  structure, params = make("conv3", 1, (2, 3))
  params = {"kernel": np.zeros((3, 3, 1), np.float32), "bias": np.ones(1, np.float32)}
  params["kernel"][1, 2] = 1
  mixed = merge(structure, params)(jnp.arange(6.0).reshape(1, 2, 3, 1))
  np.testing.assert_array_equal(mixed[0, ..., 0], [[2, 3, 1], [5, 6, 1]])


def test_a_resized_spatial_mlp_works_on_resized_tokens():
  """As the old one on tokens resized to its grid, whose result is resized back."""
  structure, params = make("spatial-mlp", 4, (3, 4))
  tokens = tokens_of((5, 6))
  resized = SpatialMlp.resize_params(params, (3, 4), (5, 6))
  larger, _ = make("spatial-mlp", 4, (5, 6))
  mixed = merge(larger, resized)(tokens)
  for found, image in zip(mixed, tokens, strict=True):
    small = resize_bicubic(image, (3, 4), align_corners=False)
    expected = merge(structure, params)(small[None])[0]
    expected = resize_bicubic(np.asarray(expected), (5, 6), align_corners=False)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_resized_spatial_mlp_keeps_what_it_makes_of_equal_tokens():
  kernel = np.random.default_rng(0).standard_normal((6, 1)).astype(np.float32)
  params = {"kernel": np.repeat(kernel, 6, axis=1), "bias": np.full(6, 0.5, np.float32)}
  resized = SpatialMlp.resize_params(params, (2, 3), (4, 5))
  np.testing.assert_allclose(resized["kernel"].sum(0), np.full(20, kernel.sum()), atol=1e-5)
  np.testing.assert_allclose(resized["bias"], np.full(20, 0.5), rtol=1e-6)


def test_a_resized_spatial_mlp_reads_and_writes_where_it_did():
  """The kernel that copies every token to its place, on a grid twice as wide."""
  copying = {"kernel": np.eye(12, dtype=np.float32), "bias": np.zeros(12, np.float32)}
  kernel = SpatialMlp.resize_params(copying, (3, 4), (3, 8))["kernel"]
  rows, columns = np.divmod(kernel.reshape(24, 24).argmax(0), 8)
  np.testing.assert_array_equal(rows, np.repeat(np.arange(3), 8))
  assert np.abs(columns - np.tile(np.arange(8), 3)).max() <= 1


def test_global_and_local_halves_need_an_even_number_of_channels():
  with pytest.raises(UserError, match="got 7 channels, expected an even number") as caught:
    create_model("gfnet-ti", image_size=32, embed_dim=7, depth=1, mixer="global-local")
  assert "\n" not in str(caught.value)
