"""Fourier transforms as ONNX operators: products with constant matrices, which layers share.

No runtime needs a DFT operator for them. Tokens are (batch, height, width, channels); the two parts
of a half spectrum are (batch, height, columns * channels) each.
"""

import numpy as np

from gfnet_jax.export.onnx_graph import Graph
from gfnet_jax.models import fourier_matrices as matrices
from gfnet_jax.models import fourier_mixing

Shape = tuple[int, int, int]  # (height, width, channels) of tokens


def global_filter(graph: Graph, weight: np.ndarray, x: str, shape: Shape) -> str:
  """Transforms, multiplies, and transforms back, as `fourier.global_filter`.

  Args:
    graph: to which the operators are added.
    weight: (2, height, width // 2 + 1, channels), float32.
    x: tokens.
    shape: of the tokens of an image.
  """
  real, imaginary = _transform(graph, x, shape)
  product = _multiply(graph, real, imaginary, weight.reshape(2, shape[0], -1))
  return _invert(graph, product, shape)


def _multiply(graph: Graph, a: str, b: str, weight: np.ndarray) -> tuple[str, str]:
  """(a + ib) (c + id), where weight is c and d."""
  c, d = graph.weight("real", weight[0]), graph.weight("imaginary", weight[1])
  real = graph.add("Sub", graph.add("Mul", a, c), graph.add("Mul", b, d))
  return real, graph.add("Add", graph.add("Mul", a, d), graph.add("Mul", b, c))


def _transform(graph: Graph, x: str, shape: Shape) -> list[str]:
  """The two parts of the spectrum: along the width, then along the height."""
  height, width, channels = shape
  columns = width // 2 + 1
  along_width = matrices.width_pair(width).reshape(2 * columns, width)
  x = _times(graph, f"transform/{width}", along_width, x)  # (batch, height, 2 * columns, channels)
  x = graph.reshape(x, 2 * height, columns * channels)  # rows are (height, part)
  return [
    _times(graph, f"transform/{height}/{i}", matrix, x)
    for i, matrix in enumerate(_of_columns(height))
  ]


def _invert(graph: Graph, parts: tuple[str, str], shape: Shape) -> str:
  """Undoes `_transform`."""
  height, width, channels = shape
  terms = [
    _times(graph, f"inverse/{height}/{i}", matrix.T, part)  # unitary: the transpose inverts
    for i, (matrix, part) in enumerate(zip(_of_columns(height), parts, strict=True))
  ]
  x = graph.reshape(graph.add("Add", *terms), height, -1, channels)
  along_width = np.concatenate(matrices.inverse_width_pair(width), axis=1)
  return _times(graph, f"inverse/{width}", along_width, x)


def _of_columns(height: int) -> np.ndarray:
  """(2, height, height * 2): from (row, part) to the real and to the imaginary parts."""
  real, imaginary = matrices.height_pair(height)
  pairs = np.array([[real, -imaginary], [imaginary, real]])  # (out, in, height, height)
  return pairs.transpose(0, 2, 3, 1).reshape(2, height, 2 * height)


def _times(graph: Graph, name: str, matrix: np.ndarray, x: str) -> str:
  """The product of a matrix that all layers share, and the last two axes."""
  return graph.add("MatMul", graph.constant(f"fourier/{name}", matrix), x)


def fourier_mixing_of(graph: Graph, x: str, shape: Shape) -> str:
  """The real part of the transform over tokens and channels, as `FourierMixing` computes it."""
  height, width, channels = shape
  of_channels = fourier_mixing.of_real(channels).astype(np.float32)
  parts = [
    graph.add("MatMul", x, graph.constant(f"fourier/channels/{channels}/{i}", of_channels[i]))
    for i in (0, 1)
  ]
  parts = [graph.reshape(part, height, width * channels) for part in parts]
  of_rows = fourier_mixing.of_complex(height).astype(np.float32)  # (part in, part out, ...)
  parts = [
    graph.add(
      "Add",
      *(_times(graph, f"rows/{height}/{i}{j}", of_rows[i, j], parts[i]) for i in (0, 1)),
    )
    for j in (0, 1)
  ]
  parts = [graph.reshape(part, height, width, channels) for part in parts]
  # Of every row, over its columns: (height, width out, width in).
  real_part = fourier_mixing.real_part(height, width).transpose(0, 1, 3, 2).astype(np.float32)
  name = f"columns/{height}x{width}"
  terms = [_times(graph, f"{name}/{i}", real_part[i], parts[i]) for i in (0, 1)]
  mixed = graph.transpose(graph.add("Add", *terms), 0, 2, 1, 3)
  return graph.reshape(mixed, height, width, channels)
