"""Parameters and operations of the networks and token mixers, beside the paper's figures.

Counted from sizes, on one image, in G, by three conventions:

  multiply-adds      of matrix products and convolutions, one each
  with-transforms    and H * W * C * ceil(log2(H * W)) for each Fourier transform and each inverse,
                     as the authors count them
  official           and 5 per element of every layer norm: what the authors' script prints, which
                     adds its transforms to fvcore's count of the rest

FNet's transform runs over tokens and channels, so its logarithm is that of H * W * C. `prints`
names the conventions whose figure is the paper's (tables 2 and 6) when rounded like it.
xla_gflop is XLA's own count of the program for this platform, before it is optimised: two per
multiply-add, one for most else, transforms as they are computed here, as products for example.

  python tools/benchmark.py flops --output flops.json
  python tools/benchmark.py flops --models gfnet-h-ti --image-sizes 512 --mixers
"""

import argparse
import functools
import math

import jax
import jax.numpy as jnp
from benchmarks import _measure
from benchmarks._operations import CONVENTIONS, RULES, of_network
from flax import nnx

from gfnet_jax.models.base import Network
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.mixers import MIXERS
from gfnet_jax.models.variants import VARIANTS, create_model
from gfnet_jax.names import look_up

ABLATED = "gfnet-xs"  # whose mixer table 6 exchanges, at 224 pixels
PAPER = {  # GFLOPs of table 2, at 224 and 384 pixels
  ("gfnet-ti", 224): "1.3",
  ("gfnet-xs", 224): "2.9",
  ("gfnet-s", 224): "4.5",
  ("gfnet-b", 224): "7.9",
  ("gfnet-h-ti", 224): "2.1",
  ("gfnet-h-s", 224): "4.6",
  ("gfnet-h-b", 224): "8.6",
  ("gfnet-xs", 384): "8.4",
  ("gfnet-s", 384): "13.2",
  ("gfnet-b", 384): "23.3",
}
PAPER_MIXERS = {  # of table 6
  "conv3": "2.8",
  "conv5": "2.9",
  "conv7": "2.9",
  "spatial-mlp": "3.0",
  "attention": "4.6",
  "fnet": "2.9",
  "global-filter": "2.9",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.set_defaults(timed=False)
  parser.add_argument("--models", nargs="+", default=list(VARIANTS), metavar="MODEL")
  parser.add_argument("--image-sizes", nargs="+", type=_measure.count, default=[224, 384])
  parser.add_argument(
    "--mixers", nargs="*", default=list(RULES), metavar="MIXER", help=f"in {ABLATED} at 224"
  )


def run(options: argparse.Namespace) -> None:
  for name in options.models:
    look_up("model", name, VARIANTS)
  for name in options.mixers:
    look_up("mixer", name, MIXERS)
  networks = [
    (name, "global-filter", size, PAPER.get((name, size)))
    for size in options.image_sizes
    for name in options.models
  ]
  networks += [(ABLATED, mixer, 224, PAPER_MIXERS.get(mixer)) for mixer in options.mixers]
  rows = [count(*network) for network in _measure.progress(networks, "network")]
  _measure.report("flops", rows, options, digits=6)
  for convention, missed in missed_rows(rows).items():
    print(f"{convention}: does not print the paper's figure of {', '.join(missed) or 'none'}")


def count(name: str, mixer: str, image_size: int, paper: str | None) -> dict[str, object]:
  model = nnx.eval_shape(lambda: create_model(name, mixer=mixer, image_size=image_size))
  operations = of_network(model)
  counts = {name: convention(operations) / 1e9 for name, convention in CONVENTIONS.items()}
  xla = count_by_xla(model)
  printed = [name for name, value in counts.items() if rounds_to(value, paper)]
  return {
    "model": name,
    "mixer": mixer,
    "image_size": image_size,
    "parameters": sum(math.prod(value.shape) for value in split(model)[1].values()),
    **counts,
    "paper": paper,
    "prints": ",".join(printed) or None,
    "xla_gflop": xla and xla / 1e9,
  }


def rounds_to(value: float, printed: str | None) -> bool:
  """Whether a value has these digits once it is rounded to as many."""
  return printed is not None and f"{value:.{len(printed.partition('.')[2])}f}" == printed


def count_by_xla(model: Network) -> float | None:
  """The operations of inference on one image, if XLA tells; nothing is compiled."""
  structure, params = split(model)
  images = jax.ShapeDtypeStruct((1, *model.image_size, 3), jnp.float32)
  forward = jax.jit(lambda params, images: merge(structure, params)(images))
  return (forward.lower(params, images).cost_analysis() or {}).get("flops")


def missed_rows(rows: list[dict[str, object]]) -> dict[str, list[str]]:
  """The rows whose figure in the paper is not what a convention prints, by convention."""
  described = functools.partial("{model} {mixer} {image_size} ({paper})".format_map)
  return {
    convention: [
      described(row)
      for row in rows
      if row["paper"] and convention not in (row["prints"] or "").split(",")
    ]
    for convention in CONVENTIONS
  }
