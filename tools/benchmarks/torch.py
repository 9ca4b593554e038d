"""The variants beside PyTorch: the same weights, images, threads and device, in turns.

PyTorch runs the official network (gfnet_jax/weights/reference.py), eagerly and, with
--compile, by torch.compile; in bfloat16 under autocast. Inference, and a training step
with AdamW. Ratios are PyTorch's time over ours: medians of the ratios within a round,
with their quartiles (low, high), and the ratio of the two shortest times (of_minima),
which other programs on the machine disturb least. Beside inference, the model's matrix
products alone take their turns in JAX: eager/products is PyTorch's time over theirs,
which eager/jax could reach if all else took no time. `difference` is the largest one of
the logits, over the largest logit.

  python tools/benchmark.py torch --models gfnet-xs gfnet-h-ti
"""

import argparse
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from benchmarks import _measure, _models

from gfnet_jax.errors import UserError
from gfnet_jax.models.precision import PRECISIONS, compute_dtype
from gfnet_jax.models.variants import create_model, list_models
from gfnet_jax.weights.state_dict import load_torch_state_dict

try:
  import torch

  from gfnet_jax.weights import reference as official
except ModuleNotFoundError:  # said when it is asked for, not when another benchmark runs
  torch = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--models", nargs="+", default=list_models(), choices=list_models())
  parser.add_argument("--batch-size", type=_measure.count, default=8)
  parser.add_argument("--image-size", type=_measure.count, default=224)
  parser.add_argument("--precision", default="default", choices=PRECISIONS)
  parser.add_argument("--compile", action="store_true", help="torch.compile too; needs a compiler")
  parser.add_argument("--rounds", type=_measure.count, default=10, help="turns of each")


def run(options: argparse.Namespace) -> None:
  if torch is None:
    raise UserError("this benchmark needs PyTorch; install requirements-test.txt")
  models = _measure.progress(options.models, "model")
  _measure.report("torch", [row for name in models for row in measure(name, options)], options)


def measure(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
  """A row for inference and one for training."""
  dtype = compute_dtype(options.precision)
  reference = official.create(name, options.image_size)
  weights = official.golden_weights(official.shapes(reference))
  official.load(reference, weights)
  model = create_model(name, image_size=options.image_size, dtype=dtype)
  load_torch_state_dict(model, weights)
  shape = (options.batch_size, options.image_size, options.image_size, 3)
  images = np.random.default_rng(0).standard_normal(shape, np.float32)
  modules = {"eager": reference}
  if options.compile:
    modules["compiled"] = torch.compile(reference)

  ours = _models.inference(model, images)
  theirs = {way: torch_inference(module, images, dtype) for way, module in modules.items()}
  expected = theirs["eager"]().float().cpu().numpy()
  difference = np.abs(np.asarray(ours.call()) - expected).max() / np.abs(expected).max()
  products = _models.products_alone(model, options.batch_size, dtype)
  times = _measure.time_in_turns({"jax": ours.call, **theirs, "products": products}, options.rounds)
  limit = _measure.ratios(times["eager"], times.pop("products"))[1]
  rows = [{"difference": float(difference), **compare(times), "eager/products": limit}]
  del ours, theirs

  ours = _models.training_step(model, images)
  theirs = {way: torch_training(module, images, dtype) for way, module in modules.items()}
  times = _measure.time_in_turns({"jax": ours.call, **theirs}, options.rounds)
  rows.append({"difference": None, **compare(times), "eager/products": None})
  return [
    {"model": name, "what": what, "batch": options.batch_size, "precision": options.precision} | row
    for what, row in zip(("inference", "training"), rows, strict=True)
  ]


def compare(times: dict[str, list[float]]) -> dict[str, float]:
  """Medians, and the ratios of PyTorch's seconds, by way, to those of "jax"."""
  row = {f"{way}_ms": _measure.quartiles_ms(seconds)[1] for way, seconds in times.items()}
  for way in [way for way in times if way != "jax"]:
    low, median, high = _measure.ratios(times[way], times["jax"])
    row |= {f"{way}/jax": median, f"{way}_low": low, f"{way}_high": high}
    row[f"{way}_of_minima"] = min(times[way]) / min(times["jax"])
  return row


def on_device(module, images: np.ndarray, dtype: jnp.dtype):
  """The module and the images on the GPU if there is one, and a context for its products."""
  device = "cuda" if torch.cuda.is_available() else "cpu"
  tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
  autocast = functools.partial(
    torch.autocast, device, torch.bfloat16, enabled=dtype == jnp.bfloat16
  )
  return module.to(device), tensor, autocast


def torch_inference(module, images: np.ndarray, dtype: jnp.dtype) -> Callable[[], object]:
  module, tensor, autocast = on_device(module, images, dtype)

  def call():
    with torch.inference_mode(), autocast():
      return synchronized(module(tensor))

  return call


def torch_training(module, images: np.ndarray, dtype: jnp.dtype) -> Callable[[], object]:
  module, tensor, autocast = on_device(module, images, dtype)
  labels = torch.arange(len(images), device=tensor.device)
  settings = dict(
    lr=_models.OPTIMIZER["learning_rate"], weight_decay=_models.OPTIMIZER["weight_decay"]
  )
  optimizer = torch.optim.AdamW(module.parameters(), **settings)

  def call():
    optimizer.zero_grad()
    with autocast():
      loss = torch.nn.functional.cross_entropy(module(tensor), labels)
    loss.backward()
    optimizer.step()
    return synchronized(loss.detach())

  return call


def synchronized(tensor):
  """The tensor once it is computed."""
  if tensor.is_cuda:
    torch.cuda.synchronize()
  return tensor
