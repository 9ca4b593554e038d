"""Agreement with the official implementation to the last bits: everything in float64.

In float32, bounds of a millionth could hide a wrong epsilon. The witness is the PyTorch reference
with weights of float64, which leaves out its only cast to float32, and golden logits of the
official code in double precision.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity import (
  Trajectory,
  golden,
  largest_difference,
  random_array,
  reference,
  relative_l2,
  to_channels_first,
  torch,
)

import gfnet_jax
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.resize import resize_bicubic
from gfnet_jax.weights.state_dict import (
  load_torch_state_dict,
  model_from_torch,
  to_torch_state_dict,
)

pytestmark = pytest.mark.parity

BACKENDS = ("fft", "separable", "dense")
# Of both kinds, with the grids of the stages that are cheap to compute.
SMALL = {
  "isotropic": dict(image_size=28, patch_size=4, embed_dim=16, depth=2),
  "hierarchical": dict(image_size=56, embed_dims=(8, 16), depths=(1, 1)),
}


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64(True):
    yield


def double(weights):
  return {key: array.astype(np.float64) for key, array in weights.items()}


class Network:
  """A network with golden weights, and what the reference makes of one image."""

  def __init__(self, name):
    self.name = name
    if name in SMALL:
      settings = SMALL[name]
      make = reference.GFNetPyramid if name == "hierarchical" else reference.GFNet
      names = dict(patch_size="patch", embed_dim="dim", embed_dims="dims", depths="depths")
      options = {names.get(key, key): value for key, value in settings.items()}
      module = make(**options, num_classes=10)
    else:
      module = reference.create(name)
    self.weights = double(reference.golden_weights(reference.shapes(module)))
    self.module = reference.load(module, self.weights)

  def model(self, backend):
    if self.name not in SMALL:
      return model_from_torch(self.weights, dtype=jnp.float64, backend=backend)[0]
    module = gfnet_jax.GFNetPyramid if self.name == "hierarchical" else gfnet_jax.GFNet
    options = dict(num_classes=10, dtype=jnp.float64, backend=backend)
    model = nnx.eval_shape(lambda: module(**SMALL[self.name], **options, rngs=nnx.Rngs(0)))
    return load_torch_state_dict(model, self.weights)

  @functools.cached_property
  def images(self):
    side = SMALL[self.name]["image_size"] if self.name in SMALL else 224
    return random_array(1, side, side, 3).astype(np.float64)

  @functools.cached_property
  def expected(self):
    """Features, logits, and by key the gradients of a random projection of the logits."""
    features = self.module.forward_features(to_channels_first(self.images))
    logits = self.module.head(features)
    (logits * torch.from_numpy(self.projection(logits))).sum().backward()
    gradients = {key: p.grad.numpy() for key, p in self.module.named_parameters()}
    return features.detach().numpy(), logits.detach().numpy(), gradients

  @staticmethod
  def projection(logits):
    return np.random.default_rng(1).standard_normal(logits.shape)

  def results(self, backend):
    """The same by our model."""
    structure, params = split(self.model(backend))

    @jax.jit
    def compute(params):
      def project(params):
        model = merge(structure, params)
        features = model.forward_features(self.images)
        logits = model.head(features)
        return (logits * self.projection(logits)).sum(), (features, logits)

      gradients, results = jax.grad(project, has_aux=True)(params)
      return *results, gradients

    features, logits, gradients = compute(params)
    return features, logits, to_torch_state_dict(merge(structure, gradients))


@pytest.fixture(scope="module")
def network(request):
  return Network(request.param)


def compare(network, backend, measured):
  features, logits, gradients = network.results(backend)
  expected_features, expected_logits, expected_gradients = network.expected
  name = f"a small {network.name} network" if network.name in SMALL else network.name
  what = f"{name} in float64 by {backend}, reference"
  measured(f"features of {what}", largest_difference(features, expected_features), 1e-13)
  measured(f"logits of {what}", largest_difference(logits, expected_logits), 1e-13)
  assert list(gradients) == list(expected_gradients)
  worst = max(relative_l2(gradients[key], expected_gradients[key]) for key in gradients)
  measured(f"gradients of {what}, relative L2", worst, 1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("network", SMALL, indirect=True)
def test_small_networks(network, backend, measured):
  compare(network, backend, measured)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_for_users")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("network", gfnet_jax.list_models(), indirect=True)
def test_all_variants(network, backend, measured):
  compare(network, backend, measured)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["gfnet-ti", "gfnet-h-ti"], indirect=True)
def test_logits_of_the_official_code(network, measured):
  structure, params = split(network.model("auto"))
  logits = jax.jit(lambda params: merge(structure, params)(network.images))(params)
  difference = largest_difference(logits, golden("float64_logits")[network.name])
  measured(f"logits of {network.name} in float64, golden", difference, 1e-13)


@pytest.mark.slow
@jax.numpy_dtype_promotion("standard")  # optax multiplies integers and floats
def test_twenty_optimiser_steps(measured):
  trajectory = Trajectory(np.float64)
  losses, norms, params = trajectory.run()
  expected_losses, expected_norms, expected_params = trajectory.run_reference()
  assert list(params) == list(expected_params)
  loss = largest_difference(np.array(losses), np.array(expected_losses))
  norm = np.abs(np.array(norms) / np.array(expected_norms) - 1).max()
  worst = max(largest_difference(params[key], expected_params[key]) for key in params)
  measured("20 steps in float64: loss, reference", loss, 1e-10)
  measured("20 steps in float64: gradient norm, relative, reference", norm, 1e-10)
  measured("20 steps in float64: every parameter, reference", worst, 1e-10)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("before", "after"), [((14, 14), (24, 24)), ((56, 29), (72, 37))])
def test_resized_tables(before, after, align_corners, measured):
  """The official positions are float32: with exact ones, a resized table is another one."""
  table = random_array(*before, 3).astype(np.float64)
  resized = resize_bicubic(table, after, align_corners=align_corners)
  in_float32 = resize_bicubic(table.astype(np.float32), after, align_corners=align_corners)
  assert resized.dtype == np.float64
  np.testing.assert_array_equal(resized.astype(np.float32), in_float32, strict=True)
  exact = torch.nn.functional.interpolate(
    torch.from_numpy(table).permute(2, 0, 1)[None],
    size=after,
    mode="bicubic",
    align_corners=align_corners,
  )
  exact = exact[0].permute(1, 2, 0).numpy()
  sizes, corners = (
    "x".join(map(str, after)),
    "corners aligned" if align_corners else "edges aligned",
  )
  what = f"table resized to {sizes} in float64, {corners}, exact positions"
  measured(what, largest_difference(resized, exact), 3e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("gfnet-ti", 384), ("gfnet-h-ti", 288)])
def test_resized_networks(name, size, measured):
  weights = double(reference.golden_weights(reference.shapes(reference.create(name))))
  model, _ = model_from_torch(weights, dtype=jnp.float64, image_size=size)
  resized = to_torch_state_dict(model)
  assert {array.dtype for array in resized.values()} == {np.dtype(np.float64)}
  images = random_array(1, size, size, 3).astype(np.float64)
  structure, params = split(model)
  logits = jax.jit(lambda params: merge(structure, params)(images))(params)
  module = reference.load(reference.create(name, size), resized)
  expected = module(to_channels_first(images)).detach().numpy()
  difference = largest_difference(logits, expected)
  measured(f"logits of {name} resized to {size} in float64, reference", difference, 1e-13)
  in_float32, _ = model_from_torch(weights, image_size=size)
  for key, array in to_torch_state_dict(in_float32).items():
    np.testing.assert_array_equal(resized[key].astype(np.float32), array, err_msg=key)
