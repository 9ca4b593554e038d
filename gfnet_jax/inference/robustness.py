"""How a model does on what it was not trained for: one row for everything that is found."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gfnet_jax.data import imagenet
from gfnet_jax.data.sources.imagenet_sets import IMAGENET_SETS, is_there
from gfnet_jax.data.sources.tfds_info import data_root, prepared_versions
from gfnet_jax.inference.attacks import Attack
from gfnet_jax.inference.evaluate import evaluate
from gfnet_jax.inference.saved_model import SavedModel, check_classifies
from gfnet_jax.text import printable

IMAGENET = ("imagenet2012", "imagenet")  # its validation images, in TFDS or in a folder


class Row(NamedTuple):
  """A result.

  Attributes:
    data: the images, and what was done to them.
    measure: what the value is.
    value: in percent.
    images: that count.
    results: all that `evaluate` returns.
  """

  data: str
  measure: str
  value: float
  images: int
  results: dict[str, Any]


def measure_robustness(
  saved: SavedModel,
  data_dir: str = "",
  *,
  data: str | None = None,
  attacks: Sequence[Attack] = (),
  batch_size: int | None = None,
) -> Iterator[Row]:
  """Evaluates a model, under attack, and on all IMAGENET_SETS that are found; row by row.

  Those are left out for a model of other classes than ImageNet's 1000.

  Args:
    saved: the model.
    data_dir: directory of all data sets; empty for TFDS's default.
    data: the data set to begin with and to attack, as for `evaluate`; None for ImageNet's
      validation images in data_dir, or else for what the model was trained with.
    attacks: of `make_attack`.
    batch_size: over all devices; None for that of the training.

  Raises:
    UserError: as `evaluate`, and for a model that gives no class to a whole image.
  """
  check_classifies(saved)
  options = dict(data_dir=data_dir or None, batch_size=batch_size)
  if data is None and _knows_imagenet(saved):
    data = _find_imagenet(data_dir)
  own = (saved.run_config or {}).get("data", {})
  title = data or f"{own.get('name')}, {own.get('eval_split')}"
  if data or own:
    yield _row(title, evaluate(saved, data, **options))
    for attack in attacks:
      results = evaluate(saved, data, attack=attack, **options)
      yield _row(f"{title}, {attack}", results)
  if not _knows_imagenet(saved):
    return
  for name, found in IMAGENET_SETS.items():
    if is_there(name, data_dir):
      yield _row(found.title, evaluate(saved, name, **options))


def to_markdown(rows: Sequence[Row]) -> str:
  """The rows as a table."""
  lines = ["| images | measure | % | counted |", "|---|---|---|---|"]
  lines += [
    f"| {printable(row.data, 300)} | {row.measure} | {row.value:.2f} | {row.images} |"
    for row in rows
  ]
  return "\n".join(lines)


def _row(data: str, results: dict[str, Any]) -> Row:
  measure, value, images = "top-1", results["top1"], results["images"]
  if "classes_compared" in results:
    measure = f"top-1 among {results['classes_compared']} classes"
  if "real" in results:
    measure, value, images = "ReaL", results["real"], results["real_images"]
  if "corruptions" in results:
    errors = list(results["corruptions"].values())
    measure, value = "mCE", results["mce"]
    if value is None:
      measure = f"mean error, {len(results['parts'])} of 75 parts"
      value = sum(errors) / len(errors)
  return Row(data, measure, value, images, results)


def _knows_imagenet(saved: SavedModel) -> bool:
  if saved.class_names is None:
    return saved.config["num_classes"] == len(imagenet.wnids())
  return set(saved.class_names) == set(imagenet.wnids())


def _find_imagenet(data_dir: str) -> str | None:
  """A name or directory for `evaluate`."""
  if prepared_versions(IMAGENET[0], data_dir):
    return IMAGENET[0]
  folders = [data_root(data_dir) / name for name in IMAGENET]
  return next((str(folder) for folder in folders if (folder / "val").is_dir()), None)
