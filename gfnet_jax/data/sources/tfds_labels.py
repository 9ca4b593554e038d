"""Which features of a TFDS data set tell the classes of an image."""

from typing import NamedTuple

import tensorflow_datasets as tfds

from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

MAX_CLASSES = 10**6  # of a description that makes sense
ORIGINAL, REAL = "original_label", "real_label"  # of imagenet2012_real


class Labels(NamedTuple):
  """The features that tell the classes of an image.

  Attributes:
    own: the name of the feature of its class.
    all_shown: the name of that of all classes that it shows; None if there is none.
    class_names: in the order of the labels.
  """

  own: str
  all_shown: str | None
  class_names: list[str]


def find_labels(builder: tfds.core.DatasetBuilder, name: str) -> Labels:
  """The features that tell the classes; makes sure that there are images beside them.

  Raises:
    UserError: if there is no image or no label, or the names of the classes make no sense.
  """
  features = builder.info.features
  found = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
  own = ORIGINAL if ORIGINAL in found and REAL in found else "label"
  label = found.get(own)
  if "image" not in found or not isinstance(label, tfds.features.ClassLabel):
    names = ", ".join(printable(feature, 40) for feature in found) or "none"
    raise UserError(f"{name} has the features {names}; expected image and label")
  if not 0 < (label.num_classes or 0) <= MAX_CLASSES:
    raise UserError(
      f"{name} has {label.num_classes} classes, expected 1 to {MAX_CLASSES}; copy it again"
    )
  names = label.names
  if not len(set(names)) == len(names) == label.num_classes:  # TFDS passes over this
    raise UserError(
      f"{name} has {len(names)} names of {label.num_classes} classes, {len(set(names))} of them "
      "different (label.labels.txt), expected one for each class; copy it again"
    )
  return Labels(own, REAL if own == ORIGINAL else None, list(names))
