"""The compiled training step on eight devices holds no hidden collectives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gfnet_jax
from configs.digits import get_config
from gfnet_jax.models.functional import split
from gfnet_jax.training.optimizer import make_optimizer
from gfnet_jax.training.sharding import make_mesh
from gfnet_jax.training.step import init_state, make_eval_step, make_train_step

SMALL = {
  "gfnet-ti": dict(patch_size=8, embed_dim=16, depth=2, drop_path_rate=0.5),
  "gfnet-h-ti": dict(embed_dims=(8, 8, 16, 16), depths=(1, 1, 2, 1), drop_path_rate=0.5),
}
COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def compiled_steps(name: str) -> dict[str, str]:
  """The HLO of the training and the evaluation step by name."""
  config, mesh = get_config(), make_mesh()
  optimizer = make_optimizer(config.optimizer)

  def make_model():
    return gfnet_jax.create_model(name, image_size=32, num_classes=10, **SMALL[name])

  structure, _ = split(nnx.eval_shape(make_model))
  batch = {"image": np.zeros((16, 32, 32, 3), np.uint8), "label": np.zeros(16, np.int32)}
  with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):  # for optax
    state = init_state(make_model, optimizer, mesh)
    train_step = make_train_step(structure, optimizer, config, mesh)
    eval_step = make_eval_step(structure, mesh)
    return {
      "train": train_step.lower(state, batch, jnp.float32(0)).compile().as_text(),
      "eval": eval_step.lower(state.params, batch).compile().as_text(),
    }


@pytest.mark.parametrize("name", SMALL)
def test_activations_stay_on_their_device(name):
  for hlo in compiled_steps(name).values():
    found = [collective for collective in COLLECTIVES if re.search(rf"\b{collective}", hlo)]
    assert not found
    assert re.search(r"\ball-reduce", hlo), "or the test does not see collectives at all"
