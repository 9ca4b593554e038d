"""The variants: speed, memory, arithmetic, time to the first step.

Every combination of the listed variants, batches, sizes, backends and types; inference
and a training step with AdamW are timed in turns with the matrix products of inference
alone, its filters alone and one large product, the peak that `utilisation` refers to.
Times are medians; `spread` is the distance of the quartiles over the median. compile_s is
the time to trace and compile, first_s the time until the first call is done; peak_mb what
XLA plans for arguments, results and temporaries; xla_gflop its own count, in which a loop
runs once; of_products the throughput over that of the products of inference alone;
filters_limit what it would be if all but the products and the filters took no time.

  python tools/benchmark.py models --models gfnet-xs gfnet-h-ti
  python tools/benchmark.py models --models gfnet-h-b --options remat scan
"""

import argparse
import itertools

import jax.numpy as jnp
import numpy as np
from benchmarks import _measure, _models

from gfnet_jax.models.fourier_backends import BACKENDS
from gfnet_jax.models.variants import create_model, list_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--models", nargs="+", default=list_models(), choices=list_models())
  parser.add_argument("--batch-sizes", nargs="+", type=_measure.count, default=[8])
  parser.add_argument("--image-sizes", nargs="+", type=_measure.count, default=[224])
  parser.add_argument("--backends", nargs="+", default=["auto"], choices=["auto", *BACKENDS])
  parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
  parser.add_argument(
    "--options", nargs="*", default=[], choices=["remat", "scan"], help="switched on in the model"
  )
  parser.add_argument(
    "--rounds", type=_measure.count, default=10, help="turns of everything that is timed"
  )
  parser.add_argument(
    "--peak-side", type=_measure.count, default=2048, help="of the large product's matrices"
  )


def run(options: argparse.Namespace) -> None:
  cases = itertools.product(
    options.models, options.batch_sizes, options.image_sizes, options.backends, options.dtypes
  )
  cases = _measure.progress(list(cases), "case")
  rows = [row for case in cases for row in measure(*case, options)]
  _measure.report("models", rows, options)


def measure(
  name: str,
  batch_size: int,
  image_size: int,
  backend: str,
  dtype: str,
  options: argparse.Namespace,
) -> list[dict[str, object]]:
  """A row for inference and one for training."""
  switches = dict.fromkeys(options.options, True)
  model = create_model(
    name, image_size=image_size, dtype=jnp.dtype(dtype), backend=backend, **switches
  )
  shape = (batch_size, image_size, image_size, 3)
  images = np.random.default_rng(0).standard_normal(shape, np.float32)
  inference, training = _models.inference(model, images), _models.training_step(model, images)
  peak, peak_flops = _models.product_peak(jnp.dtype(dtype), options.peak_side)
  times = _measure.time_in_turns(
    {
      "inference": inference.call,
      "training": training.call,
      "products": _models.products_alone(model, batch_size, jnp.dtype(dtype)),
      "filters": _models.filters_alone(model, batch_size),
      "peak": peak,
    },
    options.rounds,
  )
  _, peak_ms, _ = _measure.quartiles_ms(times["peak"])
  both = [sum(pair) for pair in zip(times["products"], times["filters"], strict=True)]
  flops = _models.flops(model) * batch_size
  case = {
    "model": name,
    "batch": batch_size,
    "size": image_size,
    "backend": backend,
    "dtype": dtype,
  }
  rows = []
  # The gradients take each product twice more.
  for what, compiled, gflop in (
    ("inference", inference, flops / 1e9),
    ("training", training, 3 * flops / 1e9),
  ):
    low, median, high = _measure.quartiles_ms(times[what])
    rows.append(
      {
        **case,
        "what": what,
        "ms": median,
        "spread": (high - low) / median,
        "images/s": 1e3 * batch_size / median,
        "compile_s": compiled.compile_s,
        "first_s": compiled.first_s,
        "peak_mb": compiled.bytes / 1e6,
        "gflop": gflop,
        "xla_gflop": compiled.flops and compiled.flops / 1e9,
        "of_products": _measure.ratios(times["products"], times[what])[1],
        "filters_limit": _measure.ratios(times["products"], both)[1]
        if what == "inference"
        else None,
        "utilisation": gflop / median / (peak_flops / 1e9 / peak_ms),
      }
    )
  return rows
