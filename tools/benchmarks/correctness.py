"""Whether a device computes what it should, which comes before how fast it does.

The logits of the variants at highest precision beside PyTorch's on the CPU; the filter by
every backend on the grids of the variants, as training calls it, beside a Fourier
transform in float64: its result and both gradients; and a short run of training, twice
from the same seed, whose parameters must have the same bits. Every difference is
relative, in the L2 norm. Fails if one exceeds `at_most`.

  python tools/benchmark.py correctness
"""

import argparse
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import _measure, backends, step
from benchmarks import torch as beside_torch

from gfnet_jax.config_files import read_config
from gfnet_jax.models.fourier import global_filter
from gfnet_jax.models.fourier_backends import BACKENDS
from gfnet_jax.models.platform import platform_of
from gfnet_jax.models.precision import matmul_precision
from gfnet_jax.models.variants import list_models
from gfnet_jax.sharding import make_mesh, split_batch
from gfnet_jax.training.initialize import initial_params
from gfnet_jax.training.program import build_program

FILTER = 2e-5  # at most: what models/precision.py promises of the filter
CHANNELS, STEPS = 8, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.set_defaults(timed=False)
  parser.add_argument("--models", nargs="+", default=list_models(), choices=list_models())
  parser.add_argument("--image-size", type=_measure.count, default=224)
  parser.add_argument("--largest", type=_measure.count, default=96, help="side of the largest grid")
  parser.add_argument(
    "--backends",
    nargs="+",
    choices=tuple(BACKENDS),
    help="of the filter; default: all, on a TPU all but fft, which compiles for minutes there",
  )


def run(options: argparse.Namespace) -> None:
  beside_torch.need_torch()
  rows = []
  for check in (logits, filters, repeated_run):
    for found in check(options):
      # At once: an accelerator's compiler may take minutes, and all may be cut off.
      print("{what}, {case}: {difference:.1e}".format(**found), file=sys.stderr, flush=True)
      rows.append(found)
  _measure.report("correctness", rows, options)


def row(what: str, case: str, difference: float, at_most: float) -> dict[str, object]:
  return {"what": what, "case": case, "difference": difference, "at_most": at_most}


def logits(options: argparse.Namespace) -> Iterator[dict[str, object]]:
  """Of two images, by every variant with the weights of the parity tests."""
  images = np.random.default_rng(0).standard_normal(
    (2, options.image_size, options.image_size, 3), np.float32
  )

  def compare(name: str) -> dict[str, object]:
    reference, weights = beside_torch.their_model(name, options.image_size)
    expected = np.asarray(beside_torch.torch_inference(reference, images, autocast=False)())
    found = beside_torch.our_logits(name, weights, images)
    return row("logits", name, _measure.relative_l2(found, expected), beside_torch.EXACT)

  return _measure.in_threads(compare, options.models)


def filters(options: argparse.Namespace) -> Iterator[dict[str, object]]:
  """The filter by every backend on every grid."""
  names = options.backends or backends.worth_running(platform_of(jnp.zeros(())))
  grids = sorted({shape[:2] for shape in backends.variant_shapes()})
  cases = [
    (height, width, name)
    for height, width in grids
    for name in names
    if height <= options.largest and (name != "dense" or height * width <= backends.DENSE_LIMIT)
  ]

  def compare(case: tuple[int, int, str]) -> list[dict[str, object]]:
    height, width, name = case
    rng = np.random.default_rng(height * width)
    tokens, cotangent = rng.standard_normal((2, 2, height, width, CHANNELS), np.float32)
    weight = rng.standard_normal((2, height, width // 2 + 1, CHANNELS), np.float32)
    found = filter_and_gradients(tokens, weight, cotangent, name)
    expected = filter_in_float64(tokens, weight, cotangent)
    return [
      row(what, f"{height}x{width} {name}", _measure.relative_l2(ours, theirs), FILTER)
      for what, ours, theirs in zip(
        ("filter", "gradient of tokens", "gradient of filter"), found, expected, strict=True
      )
    ]

  for rows in _measure.in_threads(compare, cases):
    yield from rows


def filter_and_gradients(
  tokens: np.ndarray, weight: np.ndarray, cotangent: np.ndarray, backend: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The filtered tokens, and the gradients of their product with the cotangent."""

  @jax.jit
  def compute(tokens, weight, cotangent):
    result, pull_back = jax.vjp(lambda x, w: global_filter(x, w, backend), tokens, weight)
    return result, *pull_back(cotangent)

  return compute(*map(jnp.asarray, (tokens, weight, cotangent)))


def filter_in_float64(
  tokens: np.ndarray, weight: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The same, of a circular convolution with the real kernel that the weight stands for."""
  tokens, weight, cotangent = (np.float64(array) for array in (tokens, weight, cotangent))
  _, height, width, _ = tokens.shape
  kernel = np.fft.irfft2(weight[0] + 1j * weight[1], s=(height, width), axes=(0, 1))
  spectrum, of_tokens, of_cotangent = (
    np.fft.rfft2(array, axes=(-3, -2)) for array in (kernel, tokens, cotangent)
  )

  def back(product: np.ndarray) -> np.ndarray:
    return np.fft.irfft2(product, s=(height, width), axes=(-3, -2))

  of_kernel = np.fft.rfft2(back(of_cotangent * of_tokens.conj()).sum(0), axes=(0, 1))
  # All columns but the first, and the last of an even width, stand for two.
  twice = np.where(2 * np.arange(width // 2 + 1) % width == 0, 1, 2)[:, None]
  gradient = twice * of_kernel / (height * width)
  return (
    back(of_tokens * spectrum),
    back(of_cotangent * spectrum.conj()),
    np.stack([gradient.real, gradient.imag]),
  )


def repeated_run(options: argparse.Namespace) -> Iterator[dict[str, object]]:
  """A few steps on random images, mixed and all, on all devices; nothing of them may differ."""
  name, images = options.models[0], 8 * jax.device_count()
  overrides = {"data.batch_size": images, "mixing.group_size": 8}
  overrides |= {"model.image_size": options.image_size, "model.drop_path_rate": 0.1}
  flags = [f"--config.{field}={value}" for field, value in overrides.items()]
  config, mesh = read_config(f"configs/imagenet.py:{name}", flags), make_mesh()
  with jax.set_mesh(mesh), matmul_precision(config.precision):
    program = build_program(config, mesh)
    batch = jax.device_put(step.random_batch(config), split_batch(mesh))

    def parameters() -> np.ndarray:
      state = program.init(initial_params(program.make_model, "", mesh))
      for _ in range(STEPS):
        state = program.train(state, program.teacher_params, batch, 1e-3)
      flat = np.concatenate([np.asarray(value).ravel() for value in state.params.values()])
      return np.full_like(flat, np.nan) if state.frozen else flat  # a step was not finite

    yield row("run repeated", name, _measure.relative_l2(parameters(), parameters()), 0.0)
