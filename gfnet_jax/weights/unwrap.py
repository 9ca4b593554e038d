"""Finds the state dict in what a file holds, and takes off what wrappers put around it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gfnet_jax.errors import UserError
from gfnet_jax.text import printable
from gfnet_jax.weights.pickles import Opaque

# Where training code keeps weights: the official one, timm, Lightning, DeepSpeed, BasicSR.
PLACES = ("model", "state_dict", "model_state_dict", "module", "net", "network", "params")
EMA_PLACES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "params_ema")
DEPTH = 4  # of places in places

# Parts of keys that stand for no module of the network (torch.compile, FSDP, checkpointing).
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
OFFICIAL_PARTS = ("pos_embed", "patch_embed", "blocks", "norm", "head")  # keys begin with one
COUNTER = "n_averaged"  # of torch.optim.swa_utils, beside the weights

Content = dict[str, np.ndarray | Opaque]


def find_state_dict(content: Any, *, ema: bool) -> Content:
  """The state dict in a checkpoint, under the names that the official code uses.

  Args:
    content: what a file holds: the state dict, or dicts around it.
    ema: whether the averaged weights are wanted.

  Returns:
    Tensors by key; Opaque ones are no dense floats.

  Raises:
    UserError: if there is none, or several, or what is in it are no tensors; the message
      lacks the name of the file.
  """
  if not isinstance(content, Mapping):
    raise UserError(f"holds a {_kind(content)}, expected a dict of weights{_advice(content)}")
  found = _descend(content, ema)
  if not found:
    raise UserError("holds no tensors, expected weights")
  if any(map(_is_tensor, found.values())):  # counts and accuracies are no weights
    found = {key: value for key, value in found.items() if not _is_number(value)}
  for key, value in found.items():
    if not isinstance(key, str) or not _is_tensor(value):
      raise UserError(f"{printable(repr(key))} is a {_kind(value)}, expected a tensor under a name")
  keys = _unwrapped([key for key in found if key != COUNTER])
  if len(set(keys.values())) < len(keys):
    raise UserError("names a tensor twice, under wrappers and without; save the right ones alone")
  return {name: found[key] for key, name in keys.items()}


def _descend(content: Mapping, ema: bool) -> Mapping:
  top, averaged = content, not ema
  for _ in range(DEPTH):
    places = [] if averaged else _places(content, EMA_PLACES)
    averaged = averaged or bool(places)
    places = places or _places(content, PLACES)
    if len(places) > 1:
      names = " and ".join(map(repr, places))
      raise UserError(f"holds weights under {names}, expected one of them; save it alone")
    if not places:
      break
    content = content[places[0]]
  has_weights = content is not top or all(map(_may_stand_beside, content.values()))
  if not averaged or not has_weights:
    entry = "model_ema" if ema else "model"
    for name in EMA_PLACES if ema else PLACES:
      if isinstance(top.get(name), Opaque):
        raise UserError(
          f"holds a {_kind(top[name])} under {name!r}, expected a state dict{_advice(top[name])}"
        )
    found = ", ".join(printable(repr(key), 60) for key in list(top)[:8])
    advice = "; --ema takes the averaged weights" if _places(top, EMA_PLACES) else ""
    raise UserError(f"holds no {entry!r}, expected a checkpoint with it; found {found}{advice}")
  return content


def _places(content: Mapping, names: Sequence[str]) -> list[str]:
  return [name for name in names if isinstance(content.get(name), Mapping)]


def _unwrapped(keys: list[str]) -> dict[str, str]:
  """Official names by key, as far as taking off wrappers leads to some."""
  parts = {key: [part for part in key.split(".") if part not in WRAPPERS] for key in keys}
  for _ in range(DEPTH):
    first = {part[0] for part in parts.values() if part}
    if first == {"backbone", "head"}:  # MMPretrain
      parts = {key: _without_mmpretrain(part) for key, part in parts.items()}
    elif len(first) == 1 and not first & set(OFFICIAL_PARTS):
      parts = {key: part[1:] for key, part in parts.items()}
  names = {key: ".".join(part) for key, part in parts.items()}
  known = any(part[0] in OFFICIAL_PARTS for part in parts.values() if part)
  return names if known else {key: key for key in keys}


def _without_mmpretrain(parts: list[str]) -> list[str]:
  if parts[0] == "backbone":
    return parts[1:]
  return [parts[0], *parts[2:]] if parts[1:2] == ["fc"] else parts


def _is_tensor(value: Any) -> bool:
  return isinstance(value, np.ndarray) or (isinstance(value, Opaque) and value.is_tensor)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) or (isinstance(value, Opaque) and value.is_number)


def _may_stand_beside(value: Any) -> bool:
  return _is_tensor(value) or _is_number(value)


def _advice(value: Any) -> str:
  """What to do with an object in place of a state dict: most likely, a whole model."""
  is_object = isinstance(value, Opaque) and not value.is_tensor
  return "; load it in PyTorch and save model.state_dict() alone" if is_object else ""


def _kind(value: Any) -> str:
  if isinstance(value, Opaque):
    return printable(value.description)
  return "Tensor" if isinstance(value, np.ndarray) else type(value).__name__
