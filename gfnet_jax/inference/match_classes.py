"""Which of a model's classes the labels of a data set stand for."""

from typing import NamedTuple

import ml_collections

from gfnet_jax.data import imagenet
from gfnet_jax.data.sources.imagenet_sets import set_named
from gfnet_jax.data.sources.open import (
  Relabelled,
  check_classes,
  check_same_classes,
  in_class_order,
)
from gfnet_jax.data.sources.records import Source
from gfnet_jax.errors import UserError
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.names import look_up

CHOICES = ("all", "present")  # of the classes that are told apart where the data hold only some


class Matched(NamedTuple):
  """A data set whose labels are those of a model.

  Attributes:
    source: whose labels are positions among the outputs.
    outputs: of the model, which are told apart, in the order of the labels; None: all.
    counts: what the results of an evaluation say of this; nothing unless some are missing.
  """

  source: Source
  outputs: tuple[int, ...] | None
  counts: dict[str, int]


def match_classes(
  source: Source, saved: SavedModel, data: ml_collections.ConfigDict, classes: str | None = None
) -> Matched:
  """Gives a data set the labels of a model, by the names of the classes where both have some.

  Some of ImageNet's classes are enough: their wnids say which they are. Of other models the
  data must have all classes, since equal names need not mean the same.

  Args:
    source: of `open_source`.
    saved: the model.
    data: the `data` section that the source was opened with.
    classes: one of CHOICES; None for "present" of an ImageNetSet that is restricted, else "all".

  Raises:
    UserError: if the classes are others than the model's.
  """
  named = set_named(data)
  classes = classes or ("present" if named and named.restricted else "all")
  look_up("choice of classes", classes, dict.fromkeys(CHOICES))
  found, known = source.class_names, saved.class_names
  if known and set(found) < set(known) and set(found) <= imagenet.names().keys():
    outputs = tuple(map(known.index, found)) if classes == "present" else None
    counts = dict(classes_present=len(found), classes_compared=len(outputs or known))
    return Matched(source if outputs else Relabelled(source, known), outputs, counts)
  if (
    not known and saved.config["num_classes"] > len(found) and set(found) <= imagenet.names().keys()
  ):
    raise UserError(
      f"{data.name} holds {len(found)} of ImageNet's classes, and the model does not say which of "
      f"its {saved.config['num_classes']} these are; convert it once more from the official file, "
      "by its published name"
    )
  check_classes(source, saved.config["num_classes"])
  if known:
    source = in_class_order(source, known)
    # TFDS counts classes that have no names; folders always have some, even if these are numbers.
    # ImageNet's numbers are the labels that everybody uses.
    counted = [str(i) for i in range(len(found))]
    are_names = data.source in ("folder", "photos") and known != imagenet.wnids()
    if source.class_names != counted or are_names:
      check_same_classes(source.class_names, known, data.name)
  return Matched(source, None, {})
