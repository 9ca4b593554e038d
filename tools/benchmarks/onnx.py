"""ONNX Runtime beside JAX and PyTorch: the same weights, images and cores, in turns.

`float32`, `float16` and `int8` are the files of gfnet-jax export --format onnx, by --weights;
`eager` is the official network in PyTorch. Ratios are times over ours, the model in JAX: medians
of the ratios within a round, with their quartiles (low, high), and the ratio of the two shortest
times (of_minima), which other programs on the machine disturb least.

`difference` is that of the float32 file's logits from PyTorch's, relative, in the L2 norm; the
benchmark fails if it exceeds `at_most`. float16_off and int8_off are the largest differences of a
logit from those of the float32 file, whose logits have the standard deviation `deviation`; the
weights are random, those of the parity tests. `weights_mb` is the size of the weights, the
columns `mb` are those of the files.

  python tools/benchmark.py onnx --models gfnet-xs gfnet-h-ti
"""

import argparse
import functools

import jax
import numpy as np
from benchmarks import _measure, _models, _onnx
from benchmarks import torch as beside_torch

from gfnet_jax.errors import UserError
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.models.variants import list_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--models", nargs="+", default=list_models(), choices=list_models())
  parser.add_argument("--batch-sizes", nargs="+", type=_measure.count, default=[1, 8])
  parser.add_argument("--image-size", type=_measure.count, default=224)
  parser.add_argument("--rounds", type=_measure.count, default=20, help="turns of each")


def run(options: argparse.Namespace) -> None:
  beside_torch.need_torch()
  _onnx.need_onnxruntime()
  if jax.default_backend() != "cpu":
    raise UserError("this benchmark compares on a CPU; set JAX_PLATFORMS=cpu")
  models = _measure.progress(options.models, "model")
  _measure.report("onnx", [row for name in models for row in measure(name, options)], options)


def measure(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
  """A row for each batch size."""
  reference, weights = beside_torch.their_model(name, options.image_size)
  model = beside_torch.our_model(name, weights, "default", options.image_size)
  saved = SavedModel(model, {"name": name})
  sessions = {
    kind: _onnx.Session(saved, kind, "float32") for kind in ("float32", "float16", "int8")
  }
  sizes = {f"{kind}_mb": session.bytes / 1e6 for kind, session in sessions.items()}
  sizes["weights_mb"] = sum(array.nbytes for array in weights.values()) / 1e6
  rows = []
  for batch in options.batch_sizes:
    images = np.random.default_rng(0).standard_normal(
      (batch, options.image_size, options.image_size, 3), np.float32
    )
    eager = beside_torch.torch_inference(reference, images, autocast=False)
    logits = {kind: session(images) for kind, session in sessions.items()}
    functions = {"jax": _models.inference(model, images).call, "eager": eager}
    functions |= {kind: functools.partial(session, images) for kind, session in sessions.items()}
    times = _measure.time_in_turns(functions, options.rounds)
    rows.append(
      {"model": name, "batch": batch}
      | {"difference": _measure.relative_l2(logits["float32"], eager().numpy())}
      | {"at_most": beside_torch.EXACT, "deviation": float(logits["float32"].std())}
      | {
        f"{kind}_off": float(np.abs(logits[kind] - logits["float32"]).max())
        for kind in ("float16", "int8")
      }
      | sizes
      | beside_torch.compare(times)
    )
  return rows
