"""A picture of an attack: images as they are and as they become, with what each is taken for."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gfnet_jax.data import imagenet
from gfnet_jax.data.imagenet import MEAN, STD
from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.data.samples import LABELLED, EvalSamples, Share, check_form
from gfnet_jax.data.sources.open import open_source
from gfnet_jax.data.transforms import EvalTransform
from gfnet_jax.inference.attacks import Attack, attack_images
from gfnet_jax.inference.evaluate import data_section
from gfnet_jax.inference.match_classes import match_classes
from gfnet_jax.inference.pictures import PER_ROW, draw_sheet
from gfnet_jax.inference.saved_model import SavedModel, check_classifies
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.precision import matmul_precision


def draw_attacked(
  saved: SavedModel, attack: Attack, *, data: str | None = None, data_dir: str | None = None
) -> Image.Image:
  """Draws five images of a data set, spread over it, above the same ones after an attack.

  Args:
    saved: the model.
    attack: of `make_attack`.
    data: as for `evaluate`.
    data_dir: as for `evaluate`.

  Returns:
    An image of mode RGB.

  Raises:
    UserError: as `evaluate`, and for a model that gives no class to a whole image.
  """
  check_classifies(saved)
  section = data_section(saved, name=data, data_dir=data_dir)
  source = open_source(section, section.eval_split)
  check_form(source, LABELLED)
  source = match_classes(source, saved, section, "all").source
  indices = np.arange(PER_ROW, dtype=np.int32) * len(source) // PER_ROW
  samples = EvalSamples(source, EvalTransform(saved.model.image_size), Share(1))
  shown = [samples[int(i)] for i in indices]
  clean, labels = (np.stack([sample[key] for sample in shown]) for key in ("image", "label"))
  structure, params = split(saved.model)

  @jax.jit
  def compute(params, pixels):
    model = merge(structure, params)
    images = normalize(pixels, model.dtype)
    changed = attack_images(attack, model, images, labels, indices)
    return changed, *(jax.nn.softmax(model(x)) for x in (images, changed))

  with matmul_precision(saved.precision):
    changed, *probabilities = jax.device_get(compute(params, jnp.asarray(clean)))
  mean, std = (np.array(values).reshape(1, 1, 1, 3) for values in (MEAN, STD))
  attacked = np.clip((changed * std + mean) * 255, 0, 255).round().astype(np.uint8)
  names = [imagenet.names().get(name, name) for name in source.class_names]
  images, captions = [], []
  rows = zip(("clean", "attacked"), (clean, attacked), probabilities, strict=True)
  for title, row, found in rows:
    for pixels, label, chances in zip(row, labels, found, strict=True):
      images.append(Image.fromarray(pixels))
      best = int(chances.argmax())
      percent = f"{100 * chances[best]:.0f} %"
      taken = f"taken for: {names[best]}", f" ({percent})"
      captions.append([f"{title}, true: {names[label]}", taken])
  return draw_sheet(images, captions)
