"""The networks as ONNX operators, around their token mixers."""

from flax import nnx

from gfnet_jax.export.onnx_graph import Graph
from gfnet_jax.export.onnx_mixers import array, layer_norm, mixer
from gfnet_jax.models.base import Network
from gfnet_jax.models.layers import Block, PatchEmbed


def network(graph: Graph, model: Network, x: str) -> str:
  """Adds the operators of a network, see `Network.__call__`.

  Args:
    graph: to which they are added.
    model: with its weights; blocks may be stacked.
    x: normalised images (batch, height, width, channels), float32.

  Returns:
    The logits (batch, classes), or the features of a model without a head.

  Raises:
    UserError: if the mixer has no operators, or as `Graph.linear`.
  """
  for i, (patch_embed, blocks) in enumerate(model.stages()):
    with graph.scope(model.stage_name("patch_embed", i)):
      x = _patches(graph, patch_embed, x)
    if i == 0:
      x = graph.add("Add", x, graph.weight("pos_embed", array(model.pos_embed)))
    for j, block in enumerate(blocks):
      with graph.scope(f"{model.stage_name('blocks', i)}.{j}"):
        x = _block(graph, block, x, patch_embed)
  with graph.scope("norm"):
    x = layer_norm(graph, model.norm, x)
  x = graph.add("ReduceMean", x, graph.integers(1, 2), keepdims=0)
  if model.head is None:
    return x
  with graph.scope("head"):
    return _linear(graph, model.head, x)


def _patches(graph: Graph, layer: PatchEmbed, x: str) -> str:
  """Puts the pixels of a patch side by side, and multiplies them."""
  (rows, columns), patch = layer.grid, layer.patch_size
  x = graph.reshape(x, rows, patch, columns, patch * layer.in_dim)
  x = graph.reshape(graph.transpose(x, 0, 1, 3, 2, 4), rows, columns, patch**2 * layer.in_dim)
  with graph.scope("proj"):
    return _linear(graph, layer.proj, x)


def _block(graph: Graph, block: Block, x: str, patch_embed: PatchEmbed) -> str:
  shape = (*patch_embed.grid, patch_embed.proj.out_features)
  with graph.scope("norm1"):
    branch = layer_norm(graph, block.norm1, x)
  with graph.scope("filter"):
    branch = mixer(graph, block.filter, block.mixer, branch, shape)
  with graph.scope("norm2"):
    branch = layer_norm(graph, block.norm2, branch)
  with graph.scope("mlp.fc1"):
    branch = graph.add("Gelu", _linear(graph, block.mlp.fc1, branch))
  with graph.scope("mlp.fc2"):
    gamma = array(block.gamma) if block.has_layer_scale else 1
    kernel, bias = array(block.mlp.fc2.kernel) * gamma, array(block.mlp.fc2.bias) * gamma
    branch = graph.linear(branch, kernel, bias)
  return graph.add("Add", x, branch)


def _linear(graph: Graph, layer: nnx.Module, x: str) -> str:
  return graph.linear(x, array(layer.kernel), array(layer.bias))
