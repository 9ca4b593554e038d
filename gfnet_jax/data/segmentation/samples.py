"""Samples of images with masks: to train on, and whole images in groups of equal size."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from gfnet_jax.data.decode import BadImageError, is_clipped, load_rgb, load_values, open_image
from gfnet_jax.data.samples import Form, Share
from gfnet_jax.data.segmentation.transforms import IGNORED, MaskedEvalTransform
from gfnet_jax.data.sources.records import BadRecordError, MaskedRecord, MaskedSource
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

MASK_MODES = ("L", "P", "1")  # whose pixels are values of one byte


def load_masked(
  source: MaskedSource,
  index: int,
  transform: Callable[[Image.Image, Image.Image], tuple[np.ndarray, np.ndarray]],
) -> dict[str, Any]:
  """One record as a sample: "image", "label" and, as `samples.load_labelled` has it, "clipped".

  Raises:
    BadRecordError: if its image or its mask cannot be read or decoded, with its name.
    UserError: if the mask is of another size or holds no known classes, or the transform does not
      take it.
  """
  record = source[index]
  try:
    image = open_image(record.image)
    clipped = np.str_(record.name if is_clipped(image) else "")
    labels = read_labels(record, image.size, len(source.class_names), source.first_value)
    pixels, classes = transform(image, labels)
  except BadImageError as error:
    raise BadRecordError(f"{record.name} is {error}") from error
  return {"image": pixels, "label": classes, "clipped": clipped}


def read_labels(
  record: MaskedRecord, size: tuple[int, int], num_classes: int, first_value: int
) -> Image.Image:
  """The mask of a record as labels 0 to num_classes - 1, or IGNORED, in an image of mode L.

  Args:
    record: whose mask is a grey image, or one with a palette.
    size: (width, height) of its image.
    num_classes: that there are.
    first_value: of the first class in the mask.

  Raises:
    BadRecordError: if it cannot be decoded.
    UserError: if it is of another kind or size, or holds other classes.
  """
  try:
    mask = load_values(open_image(record.mask))
  except BadImageError as error:
    raise BadRecordError(f"the mask of {record.name} is {error}") from error
  name = f"the mask of {printable(record.name, 400)}"
  if mask.mode not in MASK_MODES:
    raise UserError(
      f"{name} is of mode {mask.mode}, expected a grey image or one with a palette, whose values "
      "are the classes; convert it"
    )
  if mask.size != size:
    raise UserError(
      f"{name} has {mask.width}x{mask.height} pixels, its image {size[0]}x{size[1]} (width x "
      "height), expected the same; correct the data set"
    )
  values = np.array(mask, np.uint8)
  table = np.full(256, IGNORED, np.uint8)
  table[first_value : first_value + num_classes] = np.arange(num_classes)
  highest = int(values[values != IGNORED].max(initial=0))
  if highest >= first_value + num_classes:
    raise UserError(
      f"{name} holds the value {highest}, expected {first_value} to "
      f"{first_value + num_classes - 1} for the {num_classes} classes, or {IGNORED} for none; "
      "correct the data set or its class names (data.reduce_zero_label: whether 0 is no class)"
    )
  return Image.fromarray(table[values])


class MaskedEvalSamples:
  """Every image once, whole, in groups of equal size; each group padded to whole global batches.

  A sample is {"image": (h, w, 3) uint8, "label": (H, W) uint8, "size": (2,) int32, "counted":
  bool, "clipped"}: the resized image and, in their upper left corner, the labels of the original
  with its height and width `size`; the rest of them is IGNORED. Samples that pad a group do not
  count.

  Args:
    source: the images.
    transform: resizes them.
    share: of this process.

  Raises:
    UserError: for an image that cannot be read.
  """

  def __init__(self, source: MaskedSource, transform: MaskedEvalTransform, share: Share):
    self._source, self._transform, self._share = source, transform, share
    groups = {}
    for index, size in enumerate(source.sizes()):
      key = transform.input_size(*size), tuple(map(rounded_up, size))
      groups.setdefault(key, []).append(index)
    self._places = []
    for key, indices in sorted(groups.items()):
      padding = [None] * (-len(indices) % share.batch_size)
      self._places += [(key, index) for index in [*indices, *padding]]

  def __len__(self) -> int:
    return len(self._places) // self._share.batch_size * self._share.rows

  def __getitem__(self, i: int) -> dict[str, Any]:
    batch, row = self._share.batch_and_row(i)
    (input_size, label_size), index = self._places[batch * self._share.batch_size + row]
    padded = np.full(label_size, IGNORED, np.uint8)
    counted = np.bool_(index is not None)
    if index is None:
      image, size = np.zeros((*input_size, 3), np.uint8), np.array(label_size, np.int32)
      sample = {"image": image, "clipped": np.str_()}
      return sample | {"label": padded, "size": size, "counted": counted}
    try:
      sample = load_masked(self._source, index, self._transformed)
    except BadRecordError as error:
      raise UserError(f"evaluation image {index}: {error}; repair or remove it") from error
    labels = sample.pop("label")
    padded[: labels.shape[0], : labels.shape[1]] = labels
    size = np.array(labels.shape, np.int32)
    return sample | {"label": padded, "size": size, "counted": counted}

  def _transformed(self, image: Image.Image, labels: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    return self._transform(load_rgb(image)), np.array(labels)


def rounded_up(side: int) -> int:
  """A side to which labels are padded, so that few programs serve images of many sizes.

  It is the next multiple of a quarter of the largest power of two that is not above the side.
  """
  unit = max(1, 2 ** (side.bit_length() - 1) // 4)
  return -(-side // unit) * unit


MASKED = Form(load_masked, MaskedEvalSamples, has_masks=True)
