"""Further test sets for models of ImageNet-1k, by name: as TFDS data sets or as unpacked folders.

Whichever way one is stored, its labels are ImageNet's, or positions among the classes that it is
restricted to. Nothing is downloaded.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_collections

from gfnet_jax.data import imagenet
from gfnet_jax.data.sources.folder import FolderSource
from gfnet_jax.data.sources.joined import Joined
from gfnet_jax.data.sources.label_sets import WithLabelSets
from gfnet_jax.data.sources.open import Relabelled, open_source
from gfnet_jax.data.sources.records import Source, required_name
from gfnet_jax.data.sources.tfds_info import KINDS, data_root, file_format, prepared_versions
from gfnet_jax.errors import UserError
from gfnet_jax.names import look_up
from gfnet_jax.text import printable

CORRUPTIONS = (
  *("gaussian_noise", "shot_noise", "impulse_noise"),
  *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
  *("snow", "frost", "fog", "brightness"),
  *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
SEVERITIES = (1, 2, 3, 4, 5)
REAL_LABELS = "real.json"


class ImageNetSet(NamedTuple):
  """A test set, and where it may be.

  Attributes:
    title: as papers call it.
    tfds: the name of a TFDS data set; for ImageNet-C, its stem.
    split: of that data set.
    folders: what it may be called where it is unpacked; the archives' own names come first.
    restricted: whether the network chooses among the classes of the test set only.
    cut_out: whether the images are cut to 224 x 224 already, and so are not resized and cropped.
  """

  title: str
  tfds: str
  split: str
  folders: tuple[str, ...]
  restricted: bool = False
  cut_out: bool = False


IMAGENET_SETS = {
  "imagenet_a": ImageNetSet("ImageNet-A", "imagenet_a", "test", ("imagenet-a",), restricted=True),
  "imagenet_r": ImageNetSet("ImageNet-R", "imagenet_r", "test", ("imagenet-r",), restricted=True),
  "imagenet_v2": ImageNetSet(
    "ImageNet-V2, matched frequency",
    "imagenet_v2/matched-frequency",
    "test",
    ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency", "imagenetv2"),
  ),
  "imagenet_v2/threshold-0.7": ImageNetSet(
    "ImageNet-V2, threshold 0.7",
    "imagenet_v2/threshold-0.7",
    "test",
    ("imagenetv2-threshold0.7-format-val", "imagenetv2-threshold0.7"),
  ),
  "imagenet_v2/topimages": ImageNetSet(
    "ImageNet-V2, top images",
    "imagenet_v2/topimages",
    "test",
    ("imagenetv2-top-images-format-val", "imagenetv2-top-images"),
  ),
  "imagenet_real": ImageNetSet(
    "ImageNet, ReaL", "imagenet2012_real", "validation", ("imagenet", "imagenet2012")
  ),
  "imagenet_sketch": ImageNetSet(
    "ImageNet-Sketch", "imagenet_sketch", "test", ("sketch", "imagenet-sketch")
  ),
  "imagenet_c": ImageNetSet(
    "ImageNet-C", "imagenet2012_corrupted", "validation", ("imagenet-c",), cut_out=True
  ),
}


def set_named(data: ml_collections.ConfigDict) -> ImageNetSet | None:
  """The test set that the `data` section of a config names; None for other data."""
  return IMAGENET_SETS.get(data.name) if data.source == "imagenet_set" else None


def open_imagenet_set(data: ml_collections.ConfigDict, split: str) -> Source:
  """The source 'imagenet_set': `data.name`, one of IMAGENET_SETS, below `data.data_dir`.

  A prepared TFDS data set comes before a folder. Folders hold one folder per class, called by its
  wnid or its label, an integer; for imagenet_real, val does, and real.json is beside it; for
  imagenet_c, CORRUPTION/SEVERITY does, of which not all have to be there.

  Args:
    data: section of a config; an empty data_dir stands for TFDS's default.
    split: of the TFDS data set, or a slice of it.

  Raises:
    UserError: if it is not found, or its classes are not those that it should have.
  """
  name = required_name(data)
  test_set = look_up("set of images", name, IMAGENET_SETS)
  data_dir = data.get("data_dir", "")
  if test_set.cut_out:
    source = _open_corrupted(test_set, data_dir, split)
  else:
    source = _open_prepared(test_set.tfds, data_dir, split) or _open_folder(name, data_dir)
  if source is None:
    raise UserError(_not_found(name, data_dir))
  return source


def is_there(name: str, data_dir: str) -> bool:
  """Whether a test set is found below a directory; looks at names only."""
  test_set = IMAGENET_SETS[name]
  if test_set.cut_out:
    return bool(_corrupted_parts(test_set, data_dir))
  folder = _folder(test_set, data_dir, _is_real if name == "imagenet_real" else Path.is_dir)
  return folder is not None or _newest(test_set.tfds, data_dir) is not None


def _open_prepared(tfds_name: str, data_dir: str, split: str) -> Source | None:
  """The newest version that is prepared, with wnids for class names."""
  newest = _newest(tfds_name, data_dir)
  if newest is None:
    return None
  data = dict(source=KINDS[file_format(newest)], name=str(newest), data_dir="")
  source = open_source(ml_collections.ConfigDict(data), split)
  return _with_wnids(source, tfds_name, str(newest))


def _newest(tfds_name: str, data_dir: str) -> Path | None:
  """The directory of the newest version of a TFDS data set in a format that is read here."""
  versions = prepared_versions(tfds_name, data_dir)
  return next((path for path in reversed(versions) if file_format(path) in KINDS), None)


def _open_folder(name: str, data_dir: str) -> Source | None:
  test_set = IMAGENET_SETS[name]
  if name == "imagenet_real":
    root = _folder(test_set, data_dir, _is_real)
    if root is None:
      return None
    source = _with_wnids(FolderSource(str(root), "val"), name, str(root / "val"))
    return WithLabelSets(Relabelled(source, imagenet.wnids()), root / REAL_LABELS)
  root = _folder(test_set, data_dir, Path.is_dir)
  return None if root is None else _with_wnids(FolderSource(str(root), ""), name, str(root))


def _is_real(root: Path) -> bool:
  return (root / REAL_LABELS).is_file() and (root / "val").is_dir()


def _folder(test_set: ImageNetSet, data_dir: str, fits: Callable[[Path], bool]) -> Path | None:
  root = data_root(data_dir)
  return next((root / name for name in test_set.folders if fits(root / name)), None)


def _corrupted_parts(test_set: ImageNetSet, data_dir: str) -> dict[str, str | Path]:
  """What is there of ImageNet-C by CORRUPTION/SEVERITY: names of TFDS data sets, or folders."""
  root = _folder(test_set, data_dir, Path.is_dir)
  found = {}
  for corruption in CORRUPTIONS:
    for severity in SEVERITIES:
      tfds_name = f"{test_set.tfds}/{corruption}_{severity}"
      if _newest(tfds_name, data_dir) is not None:
        found[f"{corruption}/{severity}"] = tfds_name
      elif root is not None and (root / corruption / str(severity)).is_dir():
        found[f"{corruption}/{severity}"] = root / corruption / str(severity)
  return found


def _open_corrupted(test_set: ImageNetSet, data_dir: str, split: str) -> Source | None:
  """All that is there of ImageNet-C, in parts."""
  sources = {}
  for name, place in _corrupted_parts(test_set, data_dir).items():
    if isinstance(place, Path):
      source = _with_wnids(FolderSource(str(place), ""), "imagenet_c", str(place))
    else:
      source = _open_prepared(place, data_dir, split)
    sources[name] = Relabelled(source, imagenet.wnids())
  return Joined(sources) if sources else None


def _with_wnids(source: Source, name: str, place: str) -> Source:
  """The source with wnids for class names, restricted to the test set's classes if it has some.

  Raises:
    UserError: if a class is none of ImageNet's, or of the test set's.
  """
  wnids = imagenet.wnids()
  subset = (
    imagenet.subset(name) if name in IMAGENET_SETS and IMAGENET_SETS[name].restricted else None
  )
  by_name = dict(zip(map(str, range(len(wnids))), wnids, strict=True)) | {
    wnid: wnid for wnid in wnids
  }
  for found in source.class_names:
    if found not in by_name:
      raise UserError(
        f"{place} has the class {printable(found, 60)}, expected wnids of ImageNet, such as "
        f"{wnids[0]}, or their labels, 0 to {len(wnids) - 1}; remove what does not belong there"
      )
  names = [by_name[found] for found in source.class_names]
  if subset is None:
    return Relabelled(source, names, names)
  # TFDS lists all 1000 classes; folders are there for those that have images.
  others = [] if len(names) == len(wnids) else sorted(set(names) - set(subset))
  if others:
    raise UserError(
      f"{place} has the class {others[0]}, which is none of the {len(subset)} of "
      f"{IMAGENET_SETS[name].title}; remove what does not belong there"
    )
  return Relabelled(source, list(subset), names)


def _not_found(name: str, data_dir: str) -> str:
  test_set = IMAGENET_SETS[name]
  folder = test_set.folders[0]
  wanted = {
    "imagenet_real": f"{folder}/val and {folder}/{REAL_LABELS}",
    "imagenet_c": f"{folder}/{CORRUPTIONS[0]}/{SEVERITIES[0]} and the others",
  }.get(name, folder)
  return (
    f"{name} not found in {data_root(data_dir)}, expected the TFDS data set {test_set.tfds} or the "
    f"folder {wanted}; set data_dir (eval.py: --data-dir)"
  )
