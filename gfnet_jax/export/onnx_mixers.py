"""Token mixers as ONNX operators.

A writer adds the operators of a mixer to a graph: it maps the name of tokens (batch, height, width,
channels), float32, to that of an array of the same shape; it is also given (height, width,
channels). For a mixer of your own, write one and enter it in WRITERS.
"""

from collections.abc import Callable

import numpy as np
from flax import nnx

from gfnet_jax.errors import UserError
from gfnet_jax.export.onnx_fourier import Shape, fourier_mixing_of, global_filter
from gfnet_jax.export.onnx_graph import Graph
from gfnet_jax.models.attention import SelfAttention
from gfnet_jax.models.convolution import (
  Convolution3,
  Convolution5,
  Convolution7,
  DepthwiseConvolution,
)
from gfnet_jax.models.fourier_mixing import FourierMixing
from gfnet_jax.models.global_local import GlobalLocalFilter
from gfnet_jax.models.layer_norm import EPSILON, LayerNorm
from gfnet_jax.models.mixers import MIXERS, GlobalFilter, Identity
from gfnet_jax.models.spatial_mlp import SpatialMlp
from gfnet_jax.text import printable

Writer = Callable[[Graph, nnx.Module, str, Shape], str]


def array(param: nnx.Param) -> np.ndarray:
  """A parameter as NumPy's float32."""
  return np.asarray(param[...], np.float32)


def layer_norm(graph: Graph, norm: LayerNorm, x: str) -> str:
  """Normalises the last axis."""
  scale, bias = (graph.weight(name, array(getattr(norm, name))) for name in ("scale", "bias"))
  return graph.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=EPSILON)


def mixer(graph: Graph, module: nnx.Module, name: str, x: str, shape: Shape) -> str:
  """Adds the operators of a mixer.

  Args:
    graph: to which they are added.
    module: the mixer.
    name: by which the model knows it, for the message.
    x: tokens.
    shape: of the tokens of an image.

  Raises:
    UserError: if it has no writer.
  """
  if type(module) not in WRITERS:
    known = ", ".join(name for name, kind in MIXERS.items() if kind in WRITERS)
    raise UserError(
      f"the model mixes tokens by {printable(name)!r}, which ONNX operators are not written for, "
      f"expected one of {known}; add it to gfnet_jax/export/onnx_mixers.py, or export it as "
      "stablehlo"
    )
  return WRITERS[type(module)](graph, module, x, shape)


def _global_filter(graph: Graph, module: GlobalFilter, x: str, shape: Shape) -> str:
  return global_filter(graph, array(module.complex_weight), x, shape)


def _fourier_mixing(graph: Graph, module: FourierMixing, x: str, shape: Shape) -> str:
  return fourier_mixing_of(graph, x, shape)


def _convolution(graph: Graph, module: DepthwiseConvolution, x: str, shape: Shape) -> str:
  return _convolve(graph, array(module.kernel), array(module.bias), x)


def _convolve(graph: Graph, kernel: np.ndarray, bias: np.ndarray, x: str) -> str:
  """Every channel by itself, by a kernel (size, size, channels)."""
  size, _, channels = kernel.shape
  weights = graph.weight("kernel", kernel.transpose(2, 0, 1)[:, None]), graph.weight("bias", bias)
  x = graph.transpose(x, 0, 3, 1, 2)
  x = graph.add("Conv", x, *weights, group=channels, pads=[size // 2] * 4)
  return graph.transpose(x, 0, 2, 3, 1)


def _spatial_mlp(graph: Graph, module: SpatialMlp, x: str, shape: Shape) -> str:
  height, width, channels = shape
  x = graph.transpose(graph.reshape(x, height * width, channels), 0, 2, 1)
  x = graph.linear(x, array(module.kernel), array(module.bias))
  return graph.reshape(graph.transpose(x, 0, 2, 1), height, width, channels)


def _attention(graph: Graph, module: SelfAttention, x: str, shape: Shape) -> str:
  height, width, channels = shape
  size = channels // module.heads
  with graph.scope("qkv"):
    qkv = graph.linear(x, array(module.qkv.kernel), array(module.qkv.bias))
  qkv = graph.reshape(qkv, height * width, 3, module.heads, size)
  qkv = graph.transpose(qkv, 2, 0, 3, 1, 4)
  query, key, value = (
    graph.add("Gather", qkv, graph.constant(f"index/{i}", np.int64(i)), axis=0) for i in range(3)
  )
  scale = graph.constant(f"scale/{size}", np.float32(size**-0.5))
  query, key = graph.add("Mul", query, scale), graph.transpose(key, 0, 1, 3, 2)
  weights = graph.add("Softmax", graph.add("MatMul", query, key), axis=-1)
  mixed = graph.transpose(graph.add("MatMul", weights, value), 0, 2, 1, 3)
  with graph.scope("proj"):
    mixed = graph.reshape(mixed, height, width, channels)
    return graph.linear(mixed, array(module.proj.kernel), array(module.proj.bias))


def _global_local(graph: Graph, module: GlobalLocalFilter, x: str, shape: Shape) -> str:
  height, width, channels = shape
  half = (height, width, channels // 2)
  with graph.scope("pre_norm"):
    x = layer_norm(graph, module.pre_norm, x)
  near, far = graph.add_many("Split", 2, x, axis=-1, num_outputs=2)
  near = _convolve(graph, array(module.kernel), np.zeros(half[2], np.float32), near)
  far = global_filter(graph, array(module.complex_weight), far, half)
  pairs = [graph.add("Unsqueeze", part, graph.integers(-1)) for part in (near, far)]
  x = graph.reshape(graph.add("Concat", *pairs, axis=-1), height, width, channels)
  with graph.scope("post_norm"):
    return layer_norm(graph, module.post_norm, x)


def _identity(graph: Graph, module: Identity, x: str, shape: Shape) -> str:
  return x


WRITERS: dict[type[nnx.Module], Writer] = {
  GlobalFilter: _global_filter,
  FourierMixing: _fourier_mixing,
  Convolution3: _convolution,
  Convolution5: _convolution,
  Convolution7: _convolution,
  SpatialMlp: _spatial_mlp,
  SelfAttention: _attention,
  GlobalLocalFilter: _global_local,
  Identity: _identity,
}
