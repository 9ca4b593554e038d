"""What smaller weights of an ONNX file cost in accuracy, on the data of a training run.

For each of --weights: the size of the file, top-1 on all images of the run's evaluation, how many
of them it names otherwise than the model in JAX, and the largest difference of a probability.

  python tools/benchmark.py onnx_accuracy --checkpoint runs/digits
"""

import argparse
from collections.abc import Iterator

import jax
import numpy as np
from benchmarks import _measure, _onnx
from scipy.special import softmax

from gfnet_jax.data.decode import decode_image
from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.data.sources.open import open_source
from gfnet_jax.data.sources.records import Source
from gfnet_jax.data.transforms import eval_transform
from gfnet_jax.inference.evaluate import data_section
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.models.functional import merge, split


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.set_defaults(timed=False)
  parser.add_argument("--checkpoint", required=True, help="of a training run")
  parser.add_argument("--batch-size", type=_measure.count, default=32)


def run(options: argparse.Namespace) -> None:
  _onnx.need_onnxruntime()
  saved = load_model(options.checkpoint)
  section = data_section(saved)
  source = open_source(section, section.eval_split)
  structure, params = split(saved.model)
  in_jax = jax.jit(lambda images: merge(structure, params)(normalize(images)))
  ways = {"jax": lambda images: np.asarray(in_jax(images))}
  sessions = {kind: _onnx.Session(saved, kind) for kind in ("float32", "float16", "int8")}
  found = {name: [] for name in [*ways, *sessions]}
  labels = []
  for images, of_images in batches(source, saved.model.image_size, options.batch_size):
    labels += of_images
    for name, way in (ways | sessions).items():
      found[name].append(way(images))
  logits = {name: np.concatenate(parts) for name, parts in found.items()}
  rows = [
    {
      "weights": name,
      "mb": sessions[name].bytes / 1e6 if name in sessions else None,
      "images": len(labels),
      "top1": 100 * float(np.mean(logits[name].argmax(1) == labels)),
      "named_otherwise": int(np.sum(logits[name].argmax(1) != logits["jax"].argmax(1))),
      "largest_off": float(np.abs(softmax(logits[name], 1) - softmax(logits["jax"], 1)).max()),
    }
    for name in logits
  ]
  _measure.report("onnx_accuracy", rows, options)


def batches(
  source: Source, image_size: tuple[int, int], batch_size: int
) -> Iterator[tuple[np.ndarray, list[int]]]:
  """Images (batch, height, width, 3), uint8, and their labels, in order."""
  for start in range(0, len(source), batch_size):
    records = [source[i] for i in range(start, min(start + batch_size, len(source)))]
    yield (
      np.stack([eval_transform(decode_image(record.image), image_size) for record in records]),
      [record.label for record in records],
    )
