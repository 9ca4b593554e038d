"""The variants as functions of no argument to be timed: inference and a training step."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.layers import Block
from gfnet_jax.training.memory import read_plan

OPTIMIZER = dict(learning_rate=1e-4, weight_decay=0.05)


class Compiled(NamedTuple):
  """A function that was compiled and has run once.

  Attributes:
    call: runs it and returns arrays that may still be computed.
    compile_s: seconds to trace and compile it.
    first_s: seconds until it has run once, from nothing.
    bytes: of arguments, results and temporaries together.
    flops: as counted by XLA, or None where it does not say.
  """

  call: Callable[[], object]
  compile_s: float
  first_s: float
  bytes: int
  flops: float | None


def inference(model: nnx.Module, images: np.ndarray) -> Compiled:
  """The logits of a batch (batch, height, width, 3), float32."""
  structure, params = split(model)
  return _compile(lambda params, images: merge(structure, params)(images), (params, images))


def training_step(model: nnx.Module, images: np.ndarray) -> Compiled:
  """Loss, gradients and AdamW on a batch; the parameters change from call to call."""
  structure, params = split(model)
  params = jax.tree.map(jnp.copy, params)  # the model's own are not donated
  optimizer = optax.adamw(**OPTIMIZER)
  labels = jnp.arange(len(images)) % model.head.out_features

  def step(state, images):
    params, optimizer_state = state

    def mean_loss(params):
      logits = merge(structure, params)(images, key=jax.random.key(0))
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(mean_loss)(params)
    updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
    return (optax.apply_updates(params, updates), optimizer_state), loss

  return _compile(step, ((params, optimizer.init(params)), images), carries_state=True)


def _compile(
  function: Callable, arguments: tuple[object, jax.Array], carries_state: bool = False
) -> Compiled:
  """Compiles function(state, images); with `carries_state` it returns the next state first."""
  state, images = arguments[0], jnp.asarray(arguments[1])
  start = time.perf_counter()
  jitted = jax.jit(function, donate_argnums=0 if carries_state else ())
  compiled = jitted.lower(state, images).compile()
  compile_s = time.perf_counter() - start
  cost = compiled.cost_analysis()

  def call():
    nonlocal state
    if not carries_state:
      return compiled(state, images)
    state, loss = compiled(state, images)
    return loss

  jax.block_until_ready(call())
  first_s = time.perf_counter() - start
  return Compiled(call, compile_s, first_s, sum(read_plan(compiled)), (cost or {}).get("flops"))


def kernels(model: nnx.Module) -> Iterator[tuple[int, list[jax.Array]]]:
  """(rows per image, kernels of products one after the other) of each stage and the head."""
  for patch_embed, blocks in model.stages():
    inner = [layer.kernel[...] for block in blocks for layer in (block.mlp.fc1, block.mlp.fc2)]
    yield math.prod(patch_embed.grid), [patch_embed.proj.kernel[...], *inner]
  yield 1, [model.head.kernel[...]]


def flops(model: nnx.Module) -> float:
  """Of inference on one image: two per multiplication with a kernel, and the filters.

  A real transform of N points counts 2.5 N log2 N, a complex product 6.
  """
  total = 2.0 * sum(rows * kernel.size for rows, chain in kernels(model) for kernel in chain)
  for _, blocks in model.stages():
    for block in blocks:
      _, height, columns, channels = block.filter.complex_weight.shape
      tokens = math.prod(block.filter.grid)
      total += channels * (2 * 2.5 * tokens * math.log2(tokens) + 6 * height * columns)
  return total


def products_alone(model: nnx.Module, batch_size: int, dtype: jnp.dtype) -> Callable[[], object]:
  """The products with the kernels in inference, and nothing between them."""
  chains = [
    (
      jax.random.normal(jax.random.key(0), (batch_size * rows, chain[0].shape[0]), dtype),
      [kernel.astype(dtype) for kernel in chain],
    )
    for rows, chain in kernels(model)
  ]
  multiply = jax.jit(lambda chains: [functools.reduce(_product, ks, x) for x, ks in chains])
  return lambda: multiply(chains)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Of the factors' type, but summed in float32, as a network's: a CPU is slow at any other."""
  return jax.lax.dot(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)


def filters_alone(model: nnx.Module, batch_size: int) -> Callable[[], object]:
  """The filters in inference, and nothing between them."""
  structure, params = split(model)
  grids = [
    (batch_size, *patch_embed.grid, len(blocks[0].norm1.bias))
    for patch_embed, blocks in model.stages()
  ]
  keys = jax.random.split(jax.random.key(0), len(grids))
  # Large, or the small initial weights of many filters would take them below float32's range.
  tokens = [1e10 * jax.random.normal(key, grid) for key, grid in zip(keys, grids, strict=True)]

  @jax.jit
  def apply(params, tokens):
    chains = zip(merge(structure, params).stages(), tokens, strict=True)
    return [functools.reduce(_filter, blocks, x) for (_, blocks), x in chains]

  return lambda: apply(params, tokens)


def _filter(x: jax.Array, block: Block) -> jax.Array:
  # A barrier, or the end of one filter could cancel the beginning of the next.
  return jax.lax.optimization_barrier(block.filter(x))


def product_peak(dtype: jnp.dtype, side: int) -> tuple[Callable[[], object], float]:
  """A square matrix product, and its floating-point operations."""
  matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
  multiply = jax.jit(_product)
  return lambda: multiply(matrix, matrix), 2.0 * side**3
