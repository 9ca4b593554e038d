"""What a user of an exported model has to know: what goes in, and what comes out."""

from typing import Any

from gfnet_jax.data import imagenet
from gfnet_jax.data.imagenet import MEAN, STD
from gfnet_jax.data.transforms import size_to_cover
from gfnet_jax.errors import UserError
from gfnet_jax.inference.saved_model import SavedModel

INPUTS = ("uint8", "float32")


def describe(saved: SavedModel, input: str) -> dict[str, Any]:
  """The facts of a model by name, for JSON.

  Args:
    saved: the model.
    input: see `check_images`.

  Returns:
    `input`, `image_size` (height, width) and `channels`: the images of a batch, whose axes are
    (batch, height, width, channels). `resize_to`: (height, width) that an image is scaled to
    cover, bicubically, before its centre is cut out; None if nothing is scaled. `mean` and `std`
    of normalised images, (pixels / 255 - mean) / std per channel, RGB. `output`: "logits" or, of
    a model without a head, "features". `class_names`, as `SavedModel.predict` shows them, in the
    order of the logits, or None; of ImageNet, `wnids` are the WordNet ids. `model`: the arguments
    of `create_model`.
  """
  names = imagenet.names()
  own = saved.class_names
  known = own is not None and all(name in names for name in own)
  return {
    "input": input,
    "image_size": list(saved.model.image_size),
    "channels": channels(saved),
    "resize_to": size_to_cover(saved.model.image_size),
    "mean": list(MEAN),
    "std": list(STD),
    "output": "features" if saved.model.head is None else "logits",
    "class_names": own and [names.get(name, name) for name in own],
    **({"wnids": own} if known else {}),
    "model": saved.config,
  }


def check_input(input: str) -> None:
  """Raises UserError for what is not in INPUTS."""
  if input not in INPUTS:
    raise UserError(f"input is {input!r}, expected one of {', '.join(INPUTS)}")


def check_images(saved: SavedModel, input: str) -> None:
  """Checks what an exported model takes: images of 0 to 255 ("uint8"), or normalised ones.

  Raises:
    UserError: for neither, or for pixels of a model that is not for RGB.
  """
  check_input(input)
  if input == "uint8" and channels(saved) != len(MEAN):
    raise UserError(
      f"the model takes images of {channels(saved)} channels, but pixels are normalised as RGB; "
      "export it with --input float32, for images that are normalised already"
    )


def channels(saved: SavedModel) -> int:
  """Of the images that the model takes."""
  return next(iter(saved.model.stages()))[0].in_dim
