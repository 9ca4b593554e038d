"""What a config leaves open, chosen from the weights that it starts from and the number of images.

Only fields that are None are chosen, and only in a config that is automatic, such as
configs/photos.py. The choices become part of the config: an evaluation has them, and a run that is
continued takes them from its checkpoint, whatever would be chosen on the devices it has now.
"""

import math
import os
from typing import Any

import ml_collections

from gfnet_jax.console import say
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.models.image_size import as_height_width
from gfnet_jax.training.config_rules import NO_RULE, RULES, flatten, mixes

# Without weights to start from: little enough to learn from a hundred images on a CPU.
SMALL = dict(name="gfnet-ti", image_size=64, patch_size=4, embed_dim=64, depth=4)
LARGEST_IMAGE = 128  # pixels; of photos, as long as no other image size is asked for
MANY_IMAGES = 2000  # from which on starting worker processes pays


def choose_as_before(config: ml_collections.ConfigDict, before: dict[str, Any]) -> None:
  """Fills in what an automatic config leaves open and a run may not change.

  Args:
    config: of a run that is continued.
    before: the config that it began with, nested; {} of a new run.
  """
  if not config.get("automatic"):
    return
  fields = flatten(config.to_dict())
  for field, value in flatten(before).items():
    rule = RULES.get(field, NO_RULE)
    fixed = field.startswith("model.") or (rule.may_be_open and not rule.may_change)
    if fixed and fields.get(field, value) is None:
      section, name = _place(config, field)
      section[name] = value


def choose_model(config: ml_collections.ConfigDict) -> None:
  """Fills in `config.model` if the config is automatic and names no network.

  With `init_checkpoint`, it is the network of those weights, for images of at most
  LARGEST_IMAGE pixels; without, SMALL.

  Raises:
    UserError: if the weights cannot be read.
  """
  model, source = config.model, config.init_checkpoint
  if not config.get("automatic"):
    return
  network = SMALL if model.name is None else {"image_size": LARGEST_IMAGE}
  if source and model.name is None:
    network = dict(load_model(source).config)
    size = network.get("image_size", LARGEST_IMAGE)
    if max(as_height_width(size)) > LARGEST_IMAGE:
      network["image_size"] = LARGEST_IMAGE
  for field, value in network.items():
    if field in model and model[field] is None:
      model[field] = value


def choose_from_data(config: ml_collections.ConfigDict, images: int, devices: int) -> None:
  """Fills in what is open of batches, epochs, rates and reading; a line says what was chosen.

  Args:
    config: of the run.
    images: to train on.
    devices: over which a batch is split.
  """
  if not config.get("automatic"):
    return
  before = {field: _get(config, field) for field in _CHOICES}
  for field, choose in _CHOICES.items():
    if before[field] is None:
      section, name = _place(config, field)
      section[name] = choose(config, images, devices)
  chosen = [f"{field}={_get(config, field)}" for field in _CHOICES if before[field] is None]
  if chosen:
    how = "--config.FIELD=VALUE changes any of these"
    say(f"Chosen for {images} images ({how}): {', '.join(chosen)}")


def advise_batch(config: ml_collections.ConfigDict, images: int, devices: int) -> str:
  """What to change where the images do not fill a batch: fields and values that work."""
  fitting = fitting_batch_size(images, devices * config.optimizer.accumulate_steps)
  if fitting > images:
    return f"{fitting} is the smallest batch here; add images"
  fields = f"--config.data.batch_size={fitting}"
  if mixes(config.mixing):
    fields += f" --config.mixing.group_size={fitting_group_size(fitting, devices)}"
  if config.model.get("decoder"):
    return f"choose {fields}"
  return f"choose {fields}, or configs/photos.py, which chooses for itself"


def fitting_batch_size(images: int, multiple: int = 1) -> int:
  """A batch that the images fill about six times: a power of two from 8 to 64, where that works.

  Args:
    images: to train on.
    multiple: of which it must be one.

  Returns:
    An even number, as mixup pairs images, if possible on each device; more than the images only
    if no smaller one works.
  """
  unit = 2 * multiple if 2 * multiple <= images else math.lcm(2, multiple)
  wanted = min(64, max(8, 2 ** int(math.log2(max(1, images / 6)))), images)
  return max(unit, wanted // unit * unit)


def fitting_group_size(batch_size: int, devices: int) -> int:
  """The largest group of mixup that spans no devices; all of the batch if there is none."""
  rows = batch_size // devices
  return rows if rows % 2 == 0 else batch_size


def _epochs(config: ml_collections.ConfigDict, images: int, devices: int) -> float:
  """Tens of epochs: small data are seen often enough, and large ones do not take forever."""
  steps, least, most = (200, 10, 40) if config.init_checkpoint else (400, 20, 80)
  wanted = 10 * math.ceil(steps * config.data.batch_size / images / 10)
  return float(min(most, max(least, wanted)))


def _learning_rate(config: ml_collections.ConfigDict, images: int, devices: int) -> float:
  if config.freeze_trunk:
    return 5e-3
  return 2e-4 if config.init_checkpoint else 2e-3


# In this order: later ones build on earlier ones. The fields are those of `config_rules.OPEN`.
_CHOICES = {
  "data.batch_size": lambda config, images, devices: fitting_batch_size(
    images, devices * config.optimizer.accumulate_steps
  ),
  # One draw for the batch, on any number of devices: it is small enough to be moved between them.
  "mixing.group_size": lambda config, images, devices: config.data.batch_size,
  "data.eval_batch_size": lambda config, images, devices: config.data.batch_size,
  "num_epochs": _epochs,
  "eval_every_epochs": lambda config, images, devices: config.num_epochs / 10,
  "optimizer.warmup_epochs": lambda config, images, devices: config.num_epochs / 10,
  "optimizer.learning_rate": _learning_rate,
  "data.reading.workers": lambda config, images, devices: (
    min(8, os.cpu_count() or 1) if images >= MANY_IMAGES else 0
  ),
}


def _place(config: ml_collections.ConfigDict, field: str) -> tuple[ml_collections.ConfigDict, str]:
  *path, name = field.split(".")
  for part in path:
    config = config[part]
  return config, name


def _get(config: ml_collections.ConfigDict, field: str) -> Any:
  section, name = _place(config, field)
  return section[name]
