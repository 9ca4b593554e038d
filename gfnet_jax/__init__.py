"""Global Filter Networks (GFNet) in JAX and Flax."""

from gfnet_jax.models.gfnet import GFNet, GFNetPyramid
from gfnet_jax.models.layers import GlobalFilter
from gfnet_jax.models.variants import create_model, list_models

__all__ = ["GFNet", "GFNetPyramid", "GlobalFilter", "create_model", "list_models"]
__version__ = "0.1.0"
