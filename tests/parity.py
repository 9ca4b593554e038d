"""What the tests of numerical agreement with the official implementation share."""

from pathlib import Path

import jax
import ml_collections
import numpy as np
import optax
import pytest
from flax import nnx

import gfnet_jax
from gfnet_jax.losses import cross_entropy
from gfnet_jax.models.functional import merge, split
from gfnet_jax.training.optimizer import make_optimizer
from gfnet_jax.weights.state_dict import load_torch_state_dict, to_torch_state_dict

torch = pytest.importorskip("torch")
reference = pytest.importorskip("gfnet_jax.weights.reference")

torch.set_num_threads(1)  # several spend more time waiting for each other than they save

GOLDEN = Path(__file__).parent / "golden"


def golden(name):
  """The arrays of a golden file, or None if there is none of that name."""
  path = GOLDEN / f"{name}.npz"
  return dict(np.load(path)) if path.exists() else None


def largest_difference(actual, expected):
  assert actual.shape == expected.shape
  return np.abs(np.float64(actual) - np.float64(expected)).max()


def relative_l2(actual, expected):
  norm = np.linalg.norm(np.float64(expected))
  return np.linalg.norm(np.float64(actual) - np.float64(expected)) / norm


def random_array(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_channels_first(images):
  return torch.from_numpy(images).permute(0, 3, 1, 2)


def in_default_suite(*names: str) -> list:
  """All variants, of which only these are no slow tests: the layers are the same in all."""
  return [
    pytest.param(name, marks=() if name in names else pytest.mark.slow)
    for name in gfnet_jax.list_models()
  ]


class Trajectory:
  """Twenty optimiser steps of a small network: losses, gradient norms, final parameters.

  Args:
    dtype: of everything; float64 needs `jax.enable_x64`.
  """

  settings = ml_collections.ConfigDict(
    dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.05, clip_norm=1.0)
  )

  def __init__(self, dtype=np.float32):
    self.dtype = dtype
    self.golden = golden("trajectory_isotropic_32px")
    self.reference = reference.GFNet(image_size=32, patch=4, dim=64, depth=4, num_classes=10)
    weights = reference.golden_weights(reference.shapes(self.reference))
    self.weights = {key: array.astype(dtype) for key, array in weights.items()}

  def batches(self):
    rng = np.random.default_rng(123)
    for learning_rate in self.golden["lr"]:
      images = rng.standard_normal((8, 32, 32, 3)).astype(np.float32)
      targets = rng.random((8, 10)).astype(np.float32)
      targets /= targets.sum(1, keepdims=True)
      yield images.astype(self.dtype), targets.astype(self.dtype), learning_rate

  def run(self):
    def create():
      return gfnet_jax.GFNet(32, 4, 64, 4, 10, dtype=self.dtype, rngs=nnx.Rngs(0))

    model = nnx.eval_shape(create)  # the weights are loaded
    structure, params = split(load_torch_state_dict(model, self.weights))
    optimizer = make_optimizer(self.settings)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, images, targets, learning_rate):
      def mean_loss(params):
        return cross_entropy(merge(structure, params)(images), targets).mean()

      loss, gradients = jax.value_and_grad(mean_loss)(params)
      updates, state = optimizer.update(gradients, state, params)
      params = jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)
      return params, state, loss, optax.tree.norm(gradients)

    losses, norms = [], []
    for images, targets, learning_rate in self.batches():
      params, state, loss, norm = step(params, state, images, targets, self.dtype(learning_rate))
      losses.append(loss)
      norms.append(norm)
    return losses, norms, to_torch_state_dict(merge(structure, params))

  def run_reference(self):
    module = reference.load(self.reference, self.weights)
    decayed = {p for key, p in module.named_parameters() if p.ndim > 1 and key != "pos_embed"}
    exempt = [p for p in module.parameters() if p not in decayed]
    optimizer = torch.optim.AdamW(
      [{"params": list(decayed)}, {"params": exempt, "weight_decay": 0}],
      betas=(0.9, 0.999),
      eps=1e-8,
      weight_decay=0.05,
    )
    losses, norms = [], []
    for images, targets, learning_rate in self.batches():
      for group in optimizer.param_groups:
        group["lr"] = learning_rate
      logits = module(to_channels_first(images))
      loss = -(torch.from_numpy(targets) * logits.log_softmax(-1)).sum(-1).mean()
      optimizer.zero_grad()
      loss.backward()
      norms.append(torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0).item())
      optimizer.step()
      losses.append(loss.item())
    return losses, norms, {key: p.detach().numpy() for key, p in module.named_parameters()}
