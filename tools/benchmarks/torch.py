"""The variants beside PyTorch: the same weights, images, threads and device, in turns.

PyTorch runs the official network (gfnet_jax/weights/reference.py): `eager`, in float32
whatever --precision is (on a GPU with TF32 if that is "default", as ours has it); with
--precision bf16 also under `autocast` to bfloat16; with --compile also by torch.compile,
with bf16 under autocast. Inference, and a training step with AdamW. Ratios are PyTorch's
time over ours: medians of the ratios within a round, with their quartiles (low, high),
and the ratio of the two shortest times (of_minima), which other programs on the machine
disturb least. Beside inference, the model's matrix products alone take their turns in
JAX: eager/products is PyTorch's time over theirs, which eager/jax could reach if all else
took no time.

`difference` is that of our logits from PyTorch's in float32, relative, in the L2 norm;
difference_to_float32 that of our bf16 logits from our own in float32. The benchmark fails
if one exceeds `at_most`.

  python tools/benchmark.py torch --models gfnet-xs gfnet-h-ti
  python tools/benchmark.py torch --precision bf16
"""

import argparse
import functools
from collections.abc import Callable

import jax
import numpy as np
from benchmarks import _measure, _models

from gfnet_jax.errors import UserError
from gfnet_jax.models.precision import compute_dtype, matmul_precision
from gfnet_jax.models.variants import create_model, list_models
from gfnet_jax.weights.state_dict import load_torch_state_dict

try:
  import torch

  from gfnet_jax.weights import reference as official
except ModuleNotFoundError:  # said when it is asked for, not when another benchmark runs
  torch = None

# Differences at most: of float32 sums in another order, and of factors rounded to bfloat16 or
# TF32. Small images have few tokens, in whose mean fewer roundings cancel.
EXACT, SHORT_FACTORS, SHORT_FACTORS_SMALL_IMAGES = 2e-5, 5e-3, 1e-2


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--models", nargs="+", default=list_models(), choices=list_models())
  parser.add_argument("--batch-size", type=_measure.count, default=8)
  parser.add_argument("--image-size", type=_measure.count, default=224)
  parser.add_argument("--precision", default="default", choices=("highest", "default", "bf16"))
  parser.add_argument("--compile", action="store_true", help="torch.compile too; needs a compiler")
  parser.add_argument("--rounds", type=_measure.count, default=10, help="turns of each")


def run(options: argparse.Namespace) -> None:
  need_torch()
  device = torch_device()
  if device == "cuda":  # TF32 where ours has it, and only there
    tf32 = options.precision == "default"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
  models = _measure.progress(options.models, "model")
  with matmul_precision(options.precision):
    rows = [row for name in models for row in measure(name, device, options)]
  _measure.report("torch", rows, options)


def need_torch() -> None:
  if torch is None:
    raise UserError("this benchmark needs PyTorch; install requirements-test.txt")


def torch_device() -> str:
  """Where PyTorch computes: on the kind of device that jax computes on.

  Raises:
    UserError: if it has none.
  """
  platform = jax.default_backend()
  if platform == "gpu" and torch.cuda.is_available():
    return "cuda"
  if platform != "cpu":
    raise UserError(
      f"jax computes on {platform}, where this PyTorch has no device; compare on a GPU with "
      "PyTorch's build for it, or on a CPU with JAX_PLATFORMS=cpu"
    )
  return "cpu"


def measure(name: str, device: str, options: argparse.Namespace) -> list[dict[str, object]]:
  """A row for inference and one for training; of each network one copy is held at a time."""
  reference, weights = their_model(name, options.image_size)
  reference.to(device)
  shape = (options.batch_size, options.image_size, options.image_size, 3)
  images = np.random.default_rng(0).standard_normal(shape, np.float32)
  case = {"model": name, "batch": options.batch_size, "precision": options.precision}
  # The weights are PyTorch's own on a CPU, and training changes them: inference comes first.
  return [
    case | {"what": "inference"} | inference(reference, name, weights, images, options),
    case | {"what": "training"} | training(reference, name, weights, images, options),
  ]


def inference(
  reference, name: str, weights: dict, images: np.ndarray, options: argparse.Namespace
) -> dict[str, object]:
  """Differences, times and ratios of the logits of a batch."""
  theirs = {
    way: torch_inference(module, images, autocast)
    for way, (module, autocast) in ways(reference, options).items()
  }
  expected = theirs["eager"]().float().cpu().numpy()
  float32 = our_logits(name, weights, images) if options.precision == "bf16" else None
  model = our_model(name, weights, options.precision, options.image_size)
  ours = _models.inference(model, images)
  logits = np.asarray(ours.call())
  products = _models.products_alone(model, options.batch_size, compute_dtype(options.precision))
  times = _measure.time_in_turns({"jax": ours.call, **theirs, "products": products}, options.rounds)
  limit = _measure.ratios(times["eager"], times.pop("products"))[1]
  return {
    "difference": _measure.relative_l2(logits, expected),
    "difference_to_float32": None if float32 is None else _measure.relative_l2(logits, float32),
    "at_most": at_most(options.precision, options.image_size),
    **compare(times),
    "eager/products": limit,
  }


def training(
  reference, name: str, weights: dict, images: np.ndarray, options: argparse.Namespace
) -> dict[str, object]:
  """Times and ratios of a training step."""
  ours = _models.training_step(
    our_model(name, weights, options.precision, options.image_size), images
  )
  settings = dict(
    lr=_models.OPTIMIZER["learning_rate"], weight_decay=_models.OPTIMIZER["weight_decay"]
  )
  optimizer = torch.optim.AdamW(reference.parameters(), **settings)  # of all ways: memory for one
  theirs = {
    way: torch_training(module, optimizer, images, autocast)
    for way, (module, autocast) in ways(reference, options).items()
  }
  times = _measure.time_in_turns({"jax": ours.call, **theirs}, options.rounds)
  blank = dict.fromkeys(("difference", "difference_to_float32", "at_most"))
  return {**blank, **compare(times), "eager/products": None}


def their_model(name: str, image_size: int):
  """The official network, and its weights by key: those of the parity tests."""
  reference = official.create(name, image_size)
  weights = official.golden_weights(official.shapes(reference))
  return official.load(reference, weights), weights


def our_logits(name: str, weights: dict, images: np.ndarray) -> np.ndarray:
  """Of our network in float32, which is gone afterwards."""
  with matmul_precision("highest"):
    model = our_model(name, weights, "highest", images.shape[1])
    return np.asarray(_models.inference(model, images).call())


def our_model(name: str, weights: dict, precision: str, image_size: int):
  model = create_model(name, image_size=image_size, dtype=compute_dtype(precision))
  load_torch_state_dict(model, weights)
  return model


def ways(reference, options: argparse.Namespace) -> dict[str, tuple[object, bool]]:
  """The ways in which PyTorch runs the network: (module, whether under autocast) by name."""
  bf16 = options.precision == "bf16"
  found = {"eager": (reference, False)}
  if bf16:
    found["autocast"] = (reference, True)
  if options.compile:
    found["compiled"] = (torch.compile(reference), bf16)
  return found


def at_most(precision: str, image_size: int) -> float:
  """The bound of a difference of logits."""
  if precision == "highest" or (precision == "default" and jax.default_backend() == "cpu"):
    return EXACT
  return SHORT_FACTORS if image_size >= 224 else SHORT_FACTORS_SMALL_IMAGES


def compare(times: dict[str, list[float]]) -> dict[str, float]:
  """Medians, and the ratios of PyTorch's seconds, by way, to those of "jax"."""
  row = {f"{way}_ms": _measure.quartiles_ms(seconds)[1] for way, seconds in times.items()}
  for way in [way for way in times if way != "jax"]:
    low, median, high = _measure.ratios(times[way], times["jax"])
    row |= {f"{way}/jax": median, f"{way}_low": low, f"{way}_high": high}
    row[f"{way}_of_minima"] = min(times[way]) / min(times["jax"])
  return row


def torch_inference(module, images: np.ndarray, autocast: bool) -> Callable[[], object]:
  tensor, context = prepare(module, images, autocast)

  def call():
    with torch.inference_mode(), context():
      return synchronized(module(tensor))

  return call


def torch_training(module, optimizer, images: np.ndarray, autocast: bool) -> Callable[[], object]:
  tensor, context = prepare(module, images, autocast)
  labels = torch.arange(len(images), device=tensor.device)

  def call():
    optimizer.zero_grad()
    with context():
      loss = torch.nn.functional.cross_entropy(module(tensor), labels)
    loss.backward()
    optimizer.step()
    return synchronized(loss.detach())

  return call


def prepare(module, images: np.ndarray, autocast: bool):
  """The images on the module's device, and a context for its products."""
  device = next(module.parameters()).device
  tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
  return tensor, functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=autocast)


def synchronized(tensor):
  """The tensor once it is computed."""
  if tensor.is_cuda:
    torch.cuda.synchronize()
  return tensor
