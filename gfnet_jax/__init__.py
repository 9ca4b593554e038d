"""Global Filter Networks (GFNet) in JAX and Flax.

The public names, each imported when it is first used: `import gfnet_jax` alone loads
neither jax nor flax, so that `--help` and mistyped flags are answered at once.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; at run time __getattr__ finds them
  from gfnet_jax.checkpoints.model import save_model as save_model
  from gfnet_jax.config_files import load_config as load_config
  from gfnet_jax.data.on_device.normalize import normalize as normalize
  from gfnet_jax.errors import UserError as UserError
  from gfnet_jax.export.formats import export_model as export_model
  from gfnet_jax.export.pretrained import from_pretrained as from_pretrained
  from gfnet_jax.export.pretrained import save_pretrained as save_pretrained
  from gfnet_jax.inference.evaluate import evaluate as evaluate
  from gfnet_jax.inference.saved_model import SavedModel as SavedModel
  from gfnet_jax.inference.saved_model import load_model as load_model
  from gfnet_jax.inference.segment import segment as segment
  from gfnet_jax.models.fit import resize as resize
  from gfnet_jax.models.gfnet import GFNet as GFNet
  from gfnet_jax.models.gfnet import GFNetPyramid as GFNetPyramid
  from gfnet_jax.models.mixers import GlobalFilter as GlobalFilter
  from gfnet_jax.models.variants import create_model as create_model
  from gfnet_jax.models.variants import list_models as list_models
  from gfnet_jax.training.loop import train as train
  from gfnet_jax.weights.state_dict import load_torch_state_dict as load_torch_state_dict
  from gfnet_jax.weights.state_dict import to_torch_state_dict as to_torch_state_dict

__version__ = "0.1.0"
_MODULES = {
  "GFNet": "models.gfnet",
  "GFNetPyramid": "models.gfnet",
  "GlobalFilter": "models.mixers",
  "SavedModel": "inference.saved_model",
  "UserError": "errors",
  "create_model": "models.variants",
  "evaluate": "inference.evaluate",
  "export_model": "export.formats",
  "from_pretrained": "export.pretrained",
  "list_models": "models.variants",
  "load_config": "config_files",
  "load_model": "inference.saved_model",
  "load_torch_state_dict": "weights.state_dict",
  "normalize": "data.on_device.normalize",
  "resize": "models.fit",
  "save_model": "checkpoints.model",
  "save_pretrained": "export.pretrained",
  "segment": "inference.segment",
  "to_torch_state_dict": "weights.state_dict",
  "train": "training.loop",
}
_PACKAGES = ("checkpoints", "data", "export", "inference", "models", "training", "weights")
__all__ = sorted(_MODULES)


def __getattr__(name: str):
  if name in _PACKAGES:
    return importlib.import_module(f"gfnet_jax.{name}")
  if name not in _MODULES:
    raise AttributeError(f"module 'gfnet_jax' has no attribute {name!r}")
  value = getattr(importlib.import_module(f"gfnet_jax.{_MODULES[name]}"), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *_MODULES, *_PACKAGES})
