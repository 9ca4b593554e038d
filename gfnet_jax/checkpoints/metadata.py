"""What a checkpoint says of itself, metadata.json: its one schema.

Every checkpoint has a step. One that holds a model has FORMAT, the arguments of
`create_model` and perhaps the names of its classes; one of a run has its config as well,
and how far it is. `read_metadata` lets nothing else pass, so that the rest of the program
need not ask again.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gfnet_jax.checkpoints.checksums import LARGEST_TEXT, parse_json
from gfnet_jax.text import printable

METADATA = "metadata.json"
FORMAT = 1  # the only one so far
LAST_STEP = 2**31 - 1  # steps are counted in int32
_DEEPEST = 16  # levels of sections in a config


class Field(NamedTuple):
  """Values that a field may have, and how an error describes them."""

  holds: Callable[[Any], bool]
  expected: str


def _is_count(value: Any) -> bool:
  return type(value) is int and 0 <= value <= LAST_STEP


def _is_number(value: Any) -> bool:
  return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_text(value: Any) -> bool:
  return isinstance(value, str) and "\0" not in value


def _are_numbers(value: Any) -> bool:
  return isinstance(value, dict) and all(map(_is_number, value.values()))


def _are_names(value: Any) -> bool:
  return value is None or (isinstance(value, list) and all(isinstance(x, str) for x in value))


def _are_fingerprints(value: Any) -> bool:
  """Whether these are those of the data of a run, see data/sources/fingerprint.py."""
  return isinstance(value, dict) and all(
    isinstance(found := value.get(split), dict)
    and _is_count(found.get("images"))
    and ("names" in found and (found["names"] is None or _is_text(found["names"])))
    for split in ("train", "eval")
  )


def _are_batches(value: Any) -> bool:
  return isinstance(value, list) and all(map(_is_count, value)) and sorted(set(value)) == value


def _is_shallow(value: Any, levels: int = _DEEPEST) -> bool:
  entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  return levels > 0 and all(_is_shallow(entry, levels - 1) for entry in entries)


COUNT = Field(_is_count, f"an integer from 0 to {LAST_STEP}")
TEXT = Field(_is_text, "text")
FLAG = Field(lambda value: isinstance(value, bool), "true or false")
SECTION = Field(lambda value: isinstance(value, dict) and _is_shallow(value), "a section of fields")

FIELDS = {
  "step": COUNT,
  "format": Field(lambda value: type(value) is int and value == FORMAT, f"{FORMAT}"),
  "model": SECTION,
  "class_names": Field(_are_names, "a list of names, or null"),
  "config": SECTION,
  "data": Field(_are_fingerprints, "images and names of train and eval"),
  "metrics": Field(_are_numbers, "numbers by name"),
  "evaluated": FLAG,
  "next_batch": COUNT,
  "skipped_batches": Field(_are_batches, "ascending indices of batches"),
  "keep": FLAG,
}
CONFIG_FIELDS = {  # those that evaluation and prediction go by
  "precision": TEXT,
  "data": SECTION,
  "data.source": TEXT,
  "data.name": TEXT,
  "data.data_dir": TEXT,
  "data.eval_split": TEXT,
  "data.eval_batch_size": COUNT,
  "data.reading": SECTION,
  "data.reading.threads": COUNT,
  "data.reading.prefetch": COUNT,
  "data.reading.workers": COUNT,
}
IN_PLACE_OF = {"top1": "miou", "ema_top1": "ema_miou"}  # where every pixel has a class
OF_A_MODEL = ("format", "class_names")
OF_A_RUN = ("model", "metrics", "evaluated", "next_batch", "skipped_batches", "keep")


def check_metadata(metadata: object) -> None:
  """Raises ValueError, naming the first field that is missing or not as the schema has it."""
  if not isinstance(metadata, dict):
    raise ValueError(f"it is {printable(repr(metadata), 80)}, expected fields by name")
  required = ("step", *(OF_A_MODEL if "model" in metadata else ()))
  required += OF_A_RUN if "config" in metadata else ()
  _check_fields(metadata, FIELDS, required, "")
  if "config" in metadata and metadata["class_names"] is None:
    raise ValueError("class_names is null, expected those of a run")
  _check_fields(metadata.get("config", {}), CONFIG_FIELDS, (), "config.")


def _check_fields(
  section: Mapping[str, Any], fields: Mapping[str, Field], required: tuple[str, ...], prefix: str
) -> None:
  for name in required:
    if name not in section:
      raise ValueError(f"{prefix}{name} is missing")
  for name, field in fields.items():
    *path, last = name.split(".")
    found = section
    for part in path:
      found = found.get(part, {})
    if last in found and not field.holds(found[last]):
      value = printable(repr(found[last]), 80)
      raise ValueError(f"{prefix}{name} is {value}, expected {field.expected}")


def parse_metadata(text: bytes) -> dict[str, Any]:
  """The metadata in a text.

  Raises:
    ValueError: if it is no JSON, or not as the schema has it.
  """
  metadata = parse_json(text)
  check_metadata(metadata)
  return metadata


def serialize_metadata(metadata: dict[str, Any]) -> str:
  """The text of metadata.

  Raises:
    ValueError: if `parse_metadata` would refuse it.
    TypeError: for what is no JSON.
  """
  text = json.dumps(metadata, indent=2) + "\n"
  if len(text) > LARGEST_TEXT:
    raise ValueError(f"{METADATA} would be larger than {LARGEST_TEXT} bytes")
  parse_metadata(text.encode())
  return text


def metric_of(metadata: Mapping[str, Any], metric: str) -> float | None:
  """A metric of the evaluation after the step, or what such a network has in place of it.

  None if there is none, or no finite one.
  """
  metrics = metadata.get("metrics", {})
  value = metrics.get(metric, metrics.get(IN_PLACE_OF.get(metric)))
  return value if value is not None and math.isfinite(value) else None
