"""Models as ONNX files: standard operators alone, for any batch size."""

from pathlib import Path
from typing import Any

import numpy as np

import gfnet_jax
from gfnet_jax.data import imagenet
from gfnet_jax.data.on_device.normalize import MEAN, STD
from gfnet_jax.errors import UserError
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
    "the formats onnx and web need the package onnx, which is not installed; pip install onnx (of "
    "an installed gfnet_jax, the extra 'onnx')"
  ) from error

OPSET = 20  # the first with Gelu
IR_VERSION = 9  # of the same release of ONNX
INPUTS = ("uint8", "float32")


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
  "features" (batch, channels) if the model has no head. Its metadata are those of `describe`.

  Args:
    saved: the model; of whatever type, the file computes in float32 but for `weights`.
    input: "uint8" for RGB images of 0 to 255, which the graph normalises, or "float32" for
      normalised ones.
    weights: of the dense layers, see `onnx_graph.Graph`.

  Raises:
    UserError: for an unknown input or weights, a mixer without operators, weights beyond the
      range of float16, or a model that is not of RGB images if the input is "uint8".
  """
  if input not in INPUTS or weights not in WEIGHT_TYPES:
    raise UserError(
      f"input is {input!r} and weights is {weights!r}, expected one of "
      f"{', '.join(INPUTS)}, and one of {', '.join(WEIGHT_TYPES)}"
    )
  model, graph = saved.model, Graph(weights)
  channels = next(iter(model.stages()))[0].in_dim
  images = _normalize(graph, channels) if input == "uint8" else "images"
  name = "features" if model.head is None else "logits"
  graph.rename_last(network(graph, model, images), name)
  kinds = {"uint8": onnx.TensorProto.UINT8, "float32": onnx.TensorProto.FLOAT}
  shape = ["batch", *model.image_size, channels]
  width = model.num_classes or model.norm.scale.shape[0]
  proto = onnx.helper.make_model(
    onnx.helper.make_graph(
      graph.nodes,
      saved.config.get("name", "gfnet"),
      [onnx.helper.make_tensor_value_info("images", kinds[input], shape)],
      [onnx.helper.make_tensor_value_info(name, kinds["float32"], ["batch", width])],
      list(graph.constants.values()),
    ),
    opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    ir_version=IR_VERSION,
    producer_name="gfnet_jax",
    producer_version=gfnet_jax.__version__,
  )
  onnx.helper.set_model_props(proto, describe(saved, input, weights))
  onnx.checker.check_model(proto, full_check=True)
  return proto


def describe(saved: SavedModel, input: str, weights: str) -> dict[str, str]:
  """What a user of the file has to know, as text by name; lists and numbers are JSON.

  `class_names` are as `predict` shows them; of ImageNet, `wnids` are the WordNet ids.
  """
  facts = {
    "image_size": list(saved.model.image_size),
    "input": input,
    "mean": list(MEAN),
    "std": list(STD),
    "weights": weights,
  }
  if saved.class_names:
    facts["class_names"] = class_names(saved)
    if saved.class_names == imagenet.wnids():
      facts["wnids"] = saved.class_names
  return {
    name: value if isinstance(value, str) else to_json(value) for name, value in facts.items()
  }


def class_names(saved: SavedModel) -> list[str] | None:
  """As `predict` shows them; None where the model has none."""
  names = imagenet.names()
  return [names.get(name, name) for name in saved.class_names] if saved.class_names else None


def _normalize(graph: Graph, channels: int) -> str:
  """See `normalize.normalize`."""
  if channels != len(MEAN):
    raise UserError(
      f"the model takes images of {channels} channels, but uint8 images are normalised as RGB; "
      "export it with --input float32, for images that are normalised already"
    )
  images = graph.add("Cast", "images", to=onnx.TensorProto.FLOAT)
  for name, operator, values in (("255", "Div", 255), ("mean", "Sub", MEAN), ("std", "Div", STD)):
    constant = graph.constant(f"normalize/{name}", np.array(values, np.float32))
    images = graph.add(operator, images, constant)
  return images
