"""Numerical agreement with the official implementation, from the transform up.

Two witnesses: golden data computed once with the official code (tests/golden), and a
PyTorch reference run live (gfnet_jax/weights/reference.py). Every measured difference is recorded;
tools/parity_table.py makes a table of them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled
from parity import (
  Trajectory,
  golden,
  in_default_suite,
  largest_difference,
  random_array,
  reference,
  relative_l2,
  to_channels_first,
  torch,
)

import gfnet_jax
from gfnet_jax.models.fourier import global_filter
from gfnet_jax.models.functional import merge, split
from gfnet_jax.weights.state_dict import model_from_torch, to_torch_state_dict

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("compiled_as_for_users")]

GRIDS = [7, 12, 14, 24, 56]


def to_tokens(grid):
  """(batch, height, width, channels) as PyTorch tokens (batch, height * width, channels)."""
  return torch.from_numpy(np.array(grid)).flatten(1, 2)


@pytest.mark.parametrize("side", GRIDS)
def test_fourier_transform(side, measured):
  grid = random_array(2, side, side, 3)
  spectrum = jnp.fft.rfft2(grid, axes=(1, 2), norm="ortho")
  for witness, expected in [
    ("NumPy", np.fft.rfft2(np.float64(grid), axes=(1, 2), norm="ortho")),
    ("reference", torch.fft.rfft2(torch.from_numpy(grid), dim=(1, 2), norm="ortho").numpy()),
  ]:
    difference = np.abs(np.asarray(spectrum) - expected).max()
    measured(f"Fourier transform, {side}x{side}, {witness}", difference, 2e-6)


@pytest.mark.parametrize("side", GRIDS)
def test_filter(side, measured):
  tokens, weight = random_array(2, side, side, 3), random_array(2, side, side // 2 + 1, 3, seed=1)
  actual = jax.jit(global_filter)(tokens, weight)
  spectrum = np.fft.rfft2(np.float64(tokens), axes=(1, 2), norm="ortho")
  spectrum *= weight[0] + 1j * np.float64(weight[1])
  by_numpy = np.fft.irfft2(spectrum, s=(side, side), axes=(1, 2), norm="ortho")
  module = reference.load(
    reference.GlobalFilter(3, side), {"complex_weight": weight.transpose(1, 2, 3, 0).copy()}
  )
  by_torch = module(to_tokens(tokens)).detach().numpy().reshape(tokens.shape)
  measured(f"filter, {side}x{side}, NumPy", largest_difference(actual, by_numpy), 5e-6)
  measured(f"filter, {side}x{side}, reference", largest_difference(actual, by_torch), 5e-6)


class Variant:
  """A variant with golden weights in both frameworks, and what both make of two images."""

  def __init__(self, name):
    self.name = name
    self.reference = reference.create(name)
    self.weights = reference.golden_weights(reference.shapes(self.reference))
    reference.load(self.reference, self.weights)
    self.model, _ = model_from_torch(self.weights)
    self.images = random_array(2, 224, 224, 3)
    self.projection = random_array(2, 1000, seed=1)  # of the logits, to a scalar to derive

  @functools.cached_property
  def results(self):
    """(features, logits, tokens behind every stage or, of the isotropic network, block)."""
    structure, params = split(self.model)
    depths = [len(blocks) for _, blocks in self.model.stages()]
    where = dict(stages=range(len(depths))) if len(depths) > 1 else dict(blocks=range(depths[0]))

    @jax.jit
    def forward(params):
      model = merge(structure, params)
      features = model.forward_features(self.images)
      tokens = model.forward_intermediates(self.images, **where)
      return features, model.head(features), tokens

    return forward(params)

  @functools.cached_property
  def expected(self):
    """(features, logits) of the reference, to be derived, and its tokens as in `results`."""
    blocks, tokens = list(self.reference.blocks), []
    for last in [
      stage[-1] if isinstance(stage, torch.nn.ModuleList) else stage for stage in blocks
    ]:
      last.register_forward_hook(lambda module, inputs, output: tokens.append(output.detach()))
    features = self.reference.forward_features(to_channels_first(self.images))
    return features, self.reference.head(features), tokens

  def gradients(self):
    """Of a random projection of the logits, by official key."""
    structure, params = split(self.model)

    def project(params):
      return (merge(structure, params)(self.images) * self.projection).sum()

    return to_torch_state_dict(merge(structure, jax.jit(jax.grad(project))(params)))

  def expected_gradients(self):
    (self.expected[1] * torch.from_numpy(self.projection)).sum().backward()
    return {key: p.grad.numpy() for key, p in self.reference.named_parameters()}


@pytest.fixture(scope="module", params=gfnet_jax.list_models())
def variant(request):
  return Variant(request.param)


@pytest.mark.parametrize("variant", ["gfnet-ti", "gfnet-h-ti"], indirect=True)
def test_block(variant, measured):
  block, module = variant.model.blocks[0], variant.reference.blocks[0]
  if variant.name == "gfnet-h-ti":
    block, module = block[0], module[0]
  tokens = random_array(1, *block.filter.grid, block.norm1.scale.shape[0])
  expected = module(to_tokens(tokens)).detach().numpy().reshape(tokens.shape)
  difference = largest_difference(compiled(block)(tokens), expected)
  measured(f"block of {variant.name}, reference", difference, 5e-6)


@pytest.mark.slow  # stage by stage, to see where test_features_of_stages_and_blocks goes wrong
@pytest.mark.parametrize("variant", ["gfnet-h-ti"], indirect=True)
def test_stage(variant, measured):
  tokens, images = jnp.asarray(variant.images[:1]), to_channels_first(variant.images[:1])
  expected = images
  for i, (patch_embed, stage) in enumerate(
    zip(variant.model.patch_embed, variant.model.blocks, strict=True)
  ):
    tokens = patch_embed(tokens)
    if i == 0:
      tokens += variant.model.pos_embed[...][None]
    for block in stage:
      tokens = block(tokens)
    expected = variant.reference.forward_stage(i, expected)
    difference = largest_difference(to_tokens(tokens), expected.detach().numpy())
    measured(f"stage {i} of {variant.name}, reference", difference, 2e-5)


# Those with a golden witness; layers are the same in all variants.
@pytest.mark.parametrize(
  "variant", in_default_suite("gfnet-ti", "gfnet-xs", "gfnet-h-ti"), indirect=True
)
def test_features_and_logits(variant, measured):
  expected = [array.detach().numpy() for array in variant.expected[:2]]
  witness = golden(f"logits_{variant.name}_224")
  for i, part in enumerate(("features", "logits")):
    what, actual = f"{part} of {variant.name}", variant.results[i]
    measured(f"{what}, reference", largest_difference(actual, expected[i]), 5e-6)
    if witness:
      measured(f"{what}, golden", largest_difference(actual, witness[part]), 5e-6)
      # Ties the live witness to the golden one.
      difference = largest_difference(expected[i], witness[part])
      measured(f"{what}: reference, golden", difference, 5e-6)


@pytest.mark.parametrize("variant", in_default_suite("gfnet-ti", "gfnet-h-ti"), indirect=True)
def test_features_of_stages_and_blocks(variant, measured):
  """Relative to the largest value: before the final norm, values grow with the depth."""
  differences = [
    largest_difference(to_tokens(tokens), expected.numpy()) / expected.abs().max()
    for tokens, expected in zip(variant.results[2], variant.expected[2], strict=True)
  ]
  assert len(differences) == {"gfnet-ti": 12, "gfnet-xs": 12}.get(
    variant.name, 4 if "-h-" in variant.name else 19
  )
  part = "stage" if "-h-" in variant.name else "block"
  measured(
    f"features of every {part} of {variant.name}, relative, reference", max(differences), 5e-6
  )


# In float64, test_parity_float64 has those of a small pyramid in the default suite, too.
@pytest.mark.parametrize("variant", in_default_suite("gfnet-ti"), indirect=True)
def test_gradients(variant, measured):
  gradients, expected = variant.gradients(), variant.expected_gradients()
  assert list(gradients) == list(expected)
  worst = max(relative_l2(gradients[key], expected[key]) for key in expected)
  measured(f"gradients of {variant.name}, relative L2, reference", worst, 1e-4)


@pytest.mark.parametrize(
  ("name", "size"), [("gfnet-ti", 384), pytest.param("gfnet-h-ti", 288, marks=pytest.mark.slow)]
)
def test_resized(name, size, measured):
  witness = golden(f"logits_{name}_224to{size}")
  weights = reference.golden_weights(reference.shapes(reference.create(name)))
  model, _ = model_from_torch(weights, image_size=size)
  resized = to_torch_state_dict(model)
  embedding = resized["pos_embed"].mean(-1, dtype=np.float64)
  first_filter = next(resized[key] for key in resized if key.endswith("complex_weight"))
  images = random_array(1, size, size, 3)
  features = model.forward_features(jnp.asarray(images))
  logits = model.head(features)
  live = reference.load(reference.create(name, size), resized)(to_channels_first(images))
  what = f"{name} resized to {size}"
  for part, actual, expected, at_most in [
    ("position embedding", embedding, witness["pos_embed_mean"], 1e-6),
    ("first filter", first_filter[:, :, 0], witness["first_filter_channel0"], 1e-6),
    ("features", features, witness["features"], 1e-5),
    ("logits", logits, witness["logits"], 1e-5),
  ]:
    measured(f"{part} of {what}, golden", largest_difference(actual, expected), at_most)
  measured(f"logits of {what}, reference", largest_difference(logits, live.detach().numpy()), 1e-5)


def statistics(params):
  """(mean, unbiased standard deviation) of every tensor, stacked."""
  return np.stack([(p.mean(dtype=float), p.std(ddof=1, dtype=float)) for p in params.values()])


@jax.numpy_dtype_promotion("standard")  # optax multiplies integers and floats
def test_twenty_optimiser_steps(measured):
  trajectory = Trajectory()
  witness = trajectory.golden
  losses, norms, params = trajectory.run()
  witnesses = {
    "golden": (witness["loss"], witness["grad_norm"], [witness[f"param/{key}"] for key in params]),
  }
  live = trajectory.run_reference()
  assert list(live[2]) == list(params)
  witnesses["reference"] = (*live[:2], statistics(live[2]))
  for name, (expected_losses, expected_norms, expected_statistics) in witnesses.items():
    loss = largest_difference(np.array(losses), np.array(expected_losses))
    norm = np.abs(np.array(norms) / np.array(expected_norms) - 1).max()
    parameters = largest_difference(statistics(params), np.array(expected_statistics))
    measured(f"20 steps: loss, {name}", loss, 1e-5)
    measured(f"20 steps: gradient norm, relative, {name}", norm, 1e-4)
    measured(f"20 steps: mean and deviation of parameters, {name}", parameters, 1e-6)
