"""Models as ONNX files: standard operators alone, for any batch size."""

from pathlib import Path
from typing import Any

import numpy as np

import gfnet_jax
from gfnet_jax.data.imagenet import MEAN, STD
from gfnet_jax.errors import UserError
from gfnet_jax.export.facts import check_images, check_input, describe
from gfnet_jax.files import open_atomically, to_json
from gfnet_jax.inference.saved_model import SavedModel

try:
  import onnx

  from gfnet_jax.export.onnx_graph import WEIGHT_TYPES, Graph
  from gfnet_jax.export.onnx_network import network
except ModuleNotFoundError as error:
  if error.name != "onnx":
    raise
  raise UserError(
    "the formats onnx and web need the package onnx, which is not installed; pip install onnx (or "
    "gfnet_jax with its extra 'onnx')"
  ) from error

OPSET = 20  # the first with Gelu
IR_VERSION = 9  # of the same release of ONNX


def check(path: Path, *, input: str = "uint8", weights: str = "float32") -> None:
  """Raises UserError for an unknown input, or as `check_weights`."""
  check_input(input)
  check_weights(weights)


def check_weights(weights: str) -> None:
  """Raises UserError for what is not in WEIGHT_TYPES."""
  if weights not in WEIGHT_TYPES:
    raise UserError(f"weights is {weights!r}, expected one of {', '.join(WEIGHT_TYPES)}")


def write(
  saved: SavedModel, path: Path, *, input: str = "uint8", weights: str = "float32"
) -> dict[str, Any]:
  """Writes a model as an ONNX file, see `to_onnx`, atomically."""
  content = to_onnx(saved, input=input, weights=weights).SerializeToString()
  with open_atomically(path) as file:
    file.write(content)
  return {"opset": OPSET, "input": input, "weights": weights, "bytes": len(content)}


def to_onnx(
  saved: SavedModel, *, input: str = "uint8", weights: str = "float32"
) -> onnx.ModelProto:
  """A model as an ONNX graph of opset 20, checked by `onnx.checker`.

  It maps "images" (batch, height, width, channels) to "logits" (batch, classes), float32, or to
  "features" (batch, channels) if the model has no head. Its metadata hold what `facts.describe`
  says, and "weights": text as it is, all else as JSON.

  Args:
    saved: the model; of whatever type, the file computes in float32 but for `weights`.
    input: see `facts.check_images`; the graph normalises "uint8".
    weights: of the dense layers, see `onnx_graph.Graph`.

  Raises:
    UserError: as `facts.check_images` and `check_weights`, for a mixer without operators, or
      weights beyond the range of float16.
  """
  check_images(saved, input)
  check_weights(weights)
  model, graph = saved.model, Graph(weights)
  facts = describe(saved, input) | {"weights": weights}
  images = _normalize(graph) if input == "uint8" else "images"
  graph.rename_last(network(graph, model, images), facts["output"])
  kinds = {"uint8": onnx.TensorProto.UINT8, "float32": onnx.TensorProto.FLOAT}
  shape = ["batch", *facts["image_size"], facts["channels"]]
  width = model.num_classes or model.norm.scale.shape[0]
  proto = onnx.helper.make_model(
    onnx.helper.make_graph(
      graph.nodes,
      saved.config.get("name", "gfnet"),
      [onnx.helper.make_tensor_value_info("images", kinds[input], shape)],
      [onnx.helper.make_tensor_value_info(facts["output"], kinds["float32"], ["batch", width])],
      list(graph.constants.values()),
    ),
    opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    ir_version=IR_VERSION,
    producer_name="gfnet_jax",
    producer_version=gfnet_jax.__version__,
  )
  texts = {name: x if isinstance(x, str) else to_json(x) for name, x in facts.items()}
  onnx.helper.set_model_props(proto, texts)
  onnx.checker.check_model(proto, full_check=True)
  return proto


def _normalize(graph: Graph) -> str:
  """See `normalize.normalize`."""
  images = graph.add("Cast", "images", to=onnx.TensorProto.FLOAT)
  for name, operator, values in (("255", "Div", 255), ("mean", "Sub", MEAN), ("std", "Div", STD)):
    constant = graph.constant(f"normalize/{name}", np.array(values, np.float32))
    images = graph.add(operator, images, constant)
  return images
