"""The weights alone, by their official names: for PyTorch, or as safetensors."""

from pathlib import Path
from typing import Any

from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.weights.files import check_writer, write_state_dict
from gfnet_jax.weights.state_dict import to_torch_state_dict


def check(path: Path) -> None:
  """Raises UserError as `check_writer`."""
  check_writer(path)


def write(saved: SavedModel, path: Path) -> dict[str, Any]:
  """Writes a .pth or a .safetensors file, see `write_state_dict`.

  Raises:
    UserError: as that and `to_torch_state_dict`.
  """
  weights = to_torch_state_dict(saved.model)
  write_state_dict(path, weights)
  return {"tensors": len(weights), "bytes": path.stat().st_size}
