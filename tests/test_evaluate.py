"""Evaluation counts every image once for any batch size and number of devices."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import compiled

import gfnet_jax
from gfnet_jax.data.decode import decode_image
from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.data.pipeline import Reading
from gfnet_jax.data.sources.tfds import TfdsSource
from gfnet_jax.data.transforms import EvalTransform
from gfnet_jax.inference import evaluate
from gfnet_jax.inference.classification import CLASSIFICATION, make_eval_step
from gfnet_jax.inference.evaluate import evaluate_params
from gfnet_jax.models.functional import split
from gfnet_jax.sharding import BATCH_AXIS, make_mesh, replicated


@pytest.fixture(scope="module")
def model():
  return gfnet_jax.create_model(
    "gfnet-ti",
    image_size=8,
    patch_size=2,
    embed_dim=16,
    depth=1,
    num_classes=10,
    rngs=nnx.Rngs(3),
  )


@pytest.fixture(scope="module")
def expected(model):
  """One forward pass over all images, scored with NumPy."""
  source = TfdsSource("digits", "test[:90]")
  records = [source[i] for i in range(len(source))]
  images = np.stack([np.asarray(decode_image(record.image)) for record in records])
  labels = np.array([record.label for record in records])
  logits = np.asarray(compiled(model)(normalize(images)), np.float64)
  order = np.argsort(-logits, axis=1)
  loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
  return {
    "top1": 100 * np.mean(order[:, 0] == labels),
    "top5": 100 * np.mean((order[:, :5] == labels[:, None]).any(1)),
    "loss": loss.mean(),
    "images": 90,
  }


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 89, 250])
def test_every_image_counts_once(model, expected, devices, batch_size):
  mesh = jax.make_mesh(
    (devices,),
    (BATCH_AXIS,),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:devices],
  )
  structure, params = split(model)
  source = TfdsSource("digits", "test[:90]")
  with jax.set_mesh(mesh):
    results = evaluate_params(
      make_eval_step(structure, mesh),
      jax.device_put(params, replicated(mesh)),
      source,
      EvalTransform(8),
      batch_size=batch_size,
      mesh=mesh,
      reading=Reading(),
    )
  assert results.pop("images_per_second") > 0
  assert results.pop("images") == expected["images"]
  assert results["top1"] == pytest.approx(expected["top1"], abs=1e-9)
  assert results["top5"] == pytest.approx(expected["top5"], abs=1e-9)
  assert results["loss"] == pytest.approx(expected["loss"], abs=1e-6)


@pytest.mark.parametrize("sizes", [[8], [8, 8], [8, 8, 6, 8, 6]])
def test_the_rate_has_neither_compiling_nor_the_start_of_workers(monkeypatch, sizes):
  clock = SimpleNamespace(now=100.0)

  class Step:
    def lower(self, params, batch):
      clock.now += 60.0
      return SimpleNamespace(compile=lambda: None)

    def __call__(self, params, batch):
      clock.now += 2.0

  def read(*arguments, **options):
    clock.now += 30.0
    yield from ({"image": np.zeros((8, size, size, 3), np.uint8)} for size in sizes)

  monkeypatch.setattr(evaluate.time, "monotonic", lambda: clock.now)
  monkeypatch.setattr(evaluate, "eval_batches", read)
  monkeypatch.setattr(evaluate, "to_devices", lambda batches, mesh: batches)
  task = CLASSIFICATION._replace(summarize=lambda results: {"batches": len(results)})
  images = range(8 * len(sizes))
  results = evaluate_params(
    *(Step(), {}, images, None), task=task, batch_size=8, mesh=make_mesh(), reading=Reading()
  )
  assert results == {"batches": len(sizes), "images_per_second": 4.0}
