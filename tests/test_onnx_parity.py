"""ONNX files of the official networks beside the official implementation's numbers."""

import numpy as np
import pytest
from parity import golden, random_array, reference
from test_onnx import run, session, to_onnx
from test_stablehlo import expected_logits

import gfnet_jax
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.weights.state_dict import model_from_torch, to_torch_state_dict

pytestmark = pytest.mark.parity


def official(name: str, size) -> SavedModel:
  """A network with the golden weights, resized."""
  weights = reference.golden_weights(reference.shapes(reference.create(name)))
  return SavedModel(*model_from_torch(weights, image_size=size))


def test_the_smallest_file_is_hardly_larger_than_its_weights(measured):
  saved = official("gfnet-ti", 224)
  proto = to_onnx(saved, input="float32")
  logits = run(proto, random_array(2, 224, 224, 3))
  expected = golden("logits_gfnet-ti_224")["logits"]
  measured("ONNX of gfnet-ti, 224, golden", np.abs(logits - expected).max(), 2e-6)
  weights = sum(array.nbytes for array in to_torch_state_dict(saved.model).values())
  assert weights < len(proto.SerializeToString()) < 1.03 * weights


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_for_users")
@pytest.mark.parametrize("size", [224, 384, (192, 256)], ids=str)
@pytest.mark.parametrize("name", gfnet_jax.list_models())
def test_official_networks(name, size, measured):
  """Batches of 1, 3 and 64 from one file."""
  saved = official(name, size)
  images = random_array(2, *saved.model.image_size, 3)
  of_file = session(to_onnx(saved, input="float32"))
  witnesses = expected_logits(name, saved.model, to_torch_state_dict(saved.model), images)
  for batch in (1, 3, 64):
    logits = of_file.run(None, {"images": np.resize(images, (batch, *images.shape[1:]))})[0]
    for expected in witnesses:  # of what was kept, some is of one image
      rows = np.arange(batch) % 2
      known = rows < len(expected)
      difference = np.abs(logits[known] - expected[rows[known]]).max()
      measured(f"ONNX of {name}, {size}, batch {batch}", difference, 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "at_most"), [("float16", 2e-3), ("int8", 0.1)])
@pytest.mark.parametrize("name", gfnet_jax.list_models())
def test_smaller_weights(name, weights, at_most, measured):
  saved = official(name, 224)
  images = random_array(2, 224, 224, 3)
  exact = run(to_onnx(saved, input="float32"), images)
  rounded = run(to_onnx(saved, input="float32", weights=weights), images)
  measured(f"ONNX of {name}, {weights}", np.abs(rounded - exact).max(), at_most)
