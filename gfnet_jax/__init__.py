"""Global Filter Networks (GFNet) in JAX and Flax."""

from gfnet_jax.models.gfnet import GFNet, GFNetPyramid
from gfnet_jax.models.layers import GlobalFilter
from gfnet_jax.models.variants import create_model, list_models
from gfnet_jax.torch_weights import load_torch_state_dict, to_torch_state_dict

__all__ = [
  "GFNet",
  "GFNetPyramid",
  "GlobalFilter",
  "create_model",
  "list_models",
  "load_torch_state_dict",
  "to_torch_state_dict",
]
__version__ = "0.1.0"
