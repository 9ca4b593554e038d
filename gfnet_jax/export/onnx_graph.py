"""A graph of ONNX operators that grows node by node, and its three forms of a dense layer."""

import contextlib
from collections.abc import Iterator

import numpy as np
import onnx

from gfnet_jax.errors import UserError

WEIGHT_TYPES = ("float32", "float16", "int8")
FLOAT16, FLOAT32 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
ZERO_POINT = 128  # of 8-bit weights: what stands for 0


class Graph:
  """Nodes and constants. Values are strings, the names that nodes give their results.

  Args:
    weights: of the dense layers, in WEIGHT_TYPES; everything else is float32. "float16"
      multiplies in 16 bits; "int8" has weights of 8 bits with a scale per output, and rounds
      their inputs to 8 bits by the range that these happen to have ("dynamic quantisation").

  Attributes:
    nodes: in an order in which they can be computed.
    constants: weights, matrices and shapes, by name.
  """

  def __init__(self, weights: str = "float32"):
    self.weights = weights
    self.nodes: list[onnx.NodeProto] = []
    self.constants: dict[str, onnx.TensorProto] = {}
    self._scope = ""

  @contextlib.contextmanager
  def scope(self, name: str) -> Iterator[None]:
    """Puts a dotted name before those of the nodes and weights that are added meanwhile."""
    before, self._scope = self._scope, f"{self._scope}{name}."
    yield
    self._scope = before

  def add(self, operator: str, *inputs: str, **attributes) -> str:
    """Adds a node with one result, and returns its name."""
    return self.add_many(operator, 1, *inputs, **attributes)[0]

  def add_many(self, operator: str, results: int, *inputs: str, **attributes) -> list[str]:
    """Adds a node with several results, and returns their names."""
    name = f"{self._scope}{operator}_{len(self.nodes)}"
    outputs = [name, *(f"{name}.{i}" for i in range(1, results))]
    node = onnx.helper.make_node(operator, inputs, outputs, name, **attributes)
    self.nodes.append(node)
    return outputs

  def rename_last(self, value: str, name: str) -> None:
    """Calls the result of the last node by another name."""
    assert self.nodes[-1].output[0] == value
    self.nodes[-1].output[0] = name

  def weight(self, name: str, array: np.ndarray) -> str:
    """A parameter, named as in the model."""
    return self.constant(f"{self._scope}{name}", np.asarray(array, np.float32))

  def constant(self, name: str, array: np.ndarray) -> str:
    """A constant that all nodes share which ask for that name."""
    if name not in self.constants:
      self.constants[name] = onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
    return name

  def integers(self, *values: int) -> str:
    """A vector of integers, such as a shape or axes."""
    name = f"integers/{','.join(map(str, values))}"
    return self.constant(name, np.array(values, np.int64))

  def reshape(self, x: str, *shape: int) -> str:
    """Reshapes every image's array; the batch stays."""
    return self.add("Reshape", x, self.integers(0, *shape))

  def transpose(self, x: str, *axes: int) -> str:
    """Puts the axes in this order."""
    return self.add("Transpose", x, perm=axes)

  def linear(self, x: str, kernel: np.ndarray, bias: np.ndarray) -> str:
    """A dense layer of (..., in), of the graph's type.

    Args:
      x: float32.
      kernel: (in, out).
      bias: (out,).

    Raises:
      UserError: if the kernel is beyond the range of float16, where that is the type.
    """
    product = {
      "float32": self._product,
      "float16": self._product_of_halves,
      "int8": self._product_of_bytes,
    }[self.weights](x, kernel)
    return self.add("Add", product, self.weight("bias", bias))

  def _product(self, x: str, kernel: np.ndarray) -> str:
    return self.add("MatMul", x, self.weight("kernel", kernel))

  def _product_of_halves(self, x: str, kernel: np.ndarray) -> str:
    name = f"{self._scope}kernel"
    if (largest := np.abs(kernel).max()) > np.finfo(np.float16).max:
      raise UserError(
        f"{name} has a weight of magnitude {largest:.3g}, beyond the range of float16; export "
        "with weights of float32"
      )
    half = self.constant(name, kernel.astype(np.float16))
    product = self.add("MatMul", self.add("Cast", x, to=FLOAT16), half)
    return self.add("Cast", product, to=FLOAT32)

  def _product_of_bytes(self, x: str, kernel: np.ndarray) -> str:
    """Exact in integers; what is lost is lost in rounding both factors.

    Weights are unsigned: of signed ones, some processors add up pairs in 16 bits only.
    """
    name = f"{self._scope}kernel"
    scale = np.abs(kernel).max(0) / (ZERO_POINT - 1)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    rounded = (np.rint(kernel / scale) + ZERO_POINT).astype(np.uint8)
    x, x_scale, x_zero = self.add_many("DynamicQuantizeLinear", 3, x)
    zero = self.constant("zero_point", np.array(ZERO_POINT, np.uint8))
    product = self.add("MatMulInteger", x, self.constant(name, rounded), x_zero, zero)
    scales = self.add("Mul", x_scale, self.constant(f"{name}.scale", scale))
    return self.add("Mul", self.add("Cast", product, to=FLOAT32), scales)
