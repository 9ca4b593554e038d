"""The kinds of sources of images, by name, and how each is opened.

To add a kind, write a class that is made from the `data` section of a config and the
name of a split, and whose instances are a `records.Source`:

  class CsvSource:
    def __init__(self, data: ml_collections.ConfigDict, split: str): ...
    class_names: list[str]
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...

and enter it in SOURCES: "csv": "my_package.my_module:CsvSource". With config.data.source =
"csv", train.py and eval.py read it; fields of its own may be added to config.data.
"""

import pkgutil
from collections import Counter
from collections.abc import Callable

import ml_collections

from gfnet_jax.data.sources.copies import with_copies
from gfnet_jax.data.sources.records import Record, Source
from gfnet_jax.errors import UserError
from gfnet_jax.names import look_up

Opener = Callable[[ml_collections.ConfigDict, str], Source]  # (data section, split) to source

# Openers, or where they are as "module:name": importing TFDS takes seconds, which only those
# who read it need to wait for.
SOURCES: dict[str, str | Opener] = {
  "tfds": "gfnet_jax.data.sources.tfds:open_tfds",
  "tfrecord": "gfnet_jax.data.sources.tfds:open_tfrecord",
  "folder": "gfnet_jax.data.sources.folder:open_folder",
  "photos": "gfnet_jax.data.sources.photos:open_photos",
  "imagenet_set": "gfnet_jax.data.sources.imagenet_sets:open_imagenet_set",
  "domains": "gfnet_jax.data.sources.domains:open_domains",
  "masks": "gfnet_jax.data.sources.masks:open_masks",
  "shapes": "gfnet_jax.data.sources.shapes:open_shapes",
}
DEFAULT = "tfds"


def open_source(data: ml_collections.ConfigDict, split: str) -> Source:
  """Opens a split of the data set that the `data` section of a config describes.

  Args:
    data: source is a name in SOURCES (default: 'tfds'); the opener reads the other fields.
      For 'tfds' (ArrayRecord) and 'tfrecord', name is that of a TFDS data set or the
      directory of one, and data_dir is where TFDS names are looked up; with verify_crc
      (default: off), 'tfrecord' checks the checksum of every record it reads. For
      'folder', name is the directory of the splits; for 'photos', that of the classes; for
      'masks', that of images/ and annotations/. For 'imagenet_set', name is one of
      `IMAGENET_SETS`, to be found in data_dir; for 'domains', see `open_domains`. A directory in
      a store, gs://..., is copied first, see `copies`.
    split: name of the split; for 'folder' a directory below name, or ''; for 'photos' train
      or val, for 'domains' test as well.

  Raises:
    UserError: if it cannot be opened or is empty.
  """
  kind = data.get("source", DEFAULT)
  opener = look_up("data.source", kind, SOURCES)
  if isinstance(opener, str):
    try:
      opener = pkgutil.resolve_name(opener)
    except (ImportError, AttributeError) as error:
      raise UserError(f"data.source {kind!r} stands for {opener} in SOURCES: {error}") from error
  source = opener(with_copies(data), split)
  if len(source) == 0:
    raise UserError(
      f"split {split!r} of {data.get('name') or kind} is empty or not a valid slice, expected at "
      "least one image"
    )
  return source


class Relabelled:
  """A source whose classes stand in another order, and so have other labels.

  It has the method `record_names` if the source has it.

  Args:
    source: the records.
    class_names: those of the source in the new order, or some: other labels become -1, which is
      an error where such a record is read.
    names: what the classes of the source are called there, if not as in the source.
  """

  def __init__(self, source: Source, class_names: list[str], names: list[str] | None = None):
    self._source, self.class_names = source, list(class_names)
    label_of = {name: label for label, name in enumerate(class_names)}
    self._labels = [label_of.get(name, -1) for name in names or source.class_names]
    self.label_sets = getattr(source, "label_sets", False)
    if hasattr(source, "record_names"):
      self.record_names = source.record_names

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Record:
    record = self._source[index]
    if not all(0 <= label < len(self._labels) for label in (record.label, *record.shown)):
      return record  # whoever reads it will name it
    shown = tuple(self._labels[label] for label in record.shown)
    return record._replace(label=self._labels[record.label], shown=shown)


def in_class_order(source: Source, class_names: list[str]) -> Source:
  """The source with the classes in another order, if they are the same; else as it is.

  A run of an earlier version has classes named by integers in the order of text, and a data
  set of TFDS has them in any order. The values in masks stand for themselves, in one order.

  Raises:
    UserError: for masks with the same classes in another order.
  """
  same = Counter(source.class_names) == Counter(class_names)
  if same and source.class_names != class_names and hasattr(source, "first_value"):
    raise UserError(
      "the data set has the classes that the weights were trained with in another order, expected "
      "the same; give the values in its masks, and its class names, that order"
    )
  if source.class_names == class_names or not same or max(Counter(class_names).values()) > 1:
    return source
  return Relabelled(source, class_names)


def check_same_classes(class_names: list[str], expected: list[str], split: str) -> None:
  """Checks the classes of a split against those that the model was trained on.

  Labels are positions among the names: one class more would shift all after it.

  Raises:
    UserError: if the names, or their order, differ.
  """
  if class_names == expected:
    return
  different = sorted(set(class_names) ^ set(expected))
  what = f"{different[0]!r} is a class of only one of them" if different else "their order differs"
  raise UserError(
    f"the classes of {split} are not those of the training data ({what}); give both the same "
    "folders"
  )


def check_classes(source: Source, num_classes: int) -> None:
  """Raises UserError unless the source has as many classes as the model."""
  if len(source.class_names) != num_classes:
    raise UserError(
      f"the data set has {len(source.class_names)} classes, the model has {num_classes} "
      "(model.num_classes); choose another data set or another model, or, to train one, set "
      "model.num_classes to 0, which counts them"
    )
