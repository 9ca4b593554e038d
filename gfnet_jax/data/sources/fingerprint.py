"""What tells the images of one split from those of another, wherever they lie."""

import hashlib
from typing import Any

from gfnet_jax.data.sources.records import Source
from gfnet_jax.text import printable

LISTED = 5  # names in a message


def fingerprint(source: Source) -> dict[str, Any]:
  """Describes which images a source holds, in which order; reads none of them.

  Returns:
    {"images": how many, "names": the SHA-256 of `source.record_names()`}, which is the same on
    every machine and for every path; None for the names of a source that has no such method.
  """
  record_names = getattr(source, "record_names", None)
  names = None
  if record_names is not None:
    names = hashlib.sha256(b"\0".join(record_names())).hexdigest()
  return {"images": len(source), "names": names}


def describe_images(before: dict[str, Any], now: dict[str, Any]) -> str | None:
  """How the images of two fingerprints differ, for a message.

  "" if they are the same; None if that is not known, for want of names.
  """
  if before["images"] != now["images"]:
    return f"{now['images']} images instead of {before['images']}"
  if before["names"] is None or now["names"] is None:
    return None
  if before["names"] != now["names"]:
    return f"{now['images']} images as before, but under other names or in another order"
  return ""


def describe_classes(before: list[str], now: list[str]) -> str:
  """How the classes of two data sets differ, for a message; "" if they do not."""
  if before == now:
    return ""
  parts = []
  for word, names, others in (("with", now, set(before)), ("without", before, set(now))):
    only = [printable(name, 60) for name in names if name not in others]
    more = f" and {len(only) - LISTED} more" if len(only) > LISTED else ""
    if only:
      parts.append(f"{word} {', '.join(only[:LISTED])}{more}")
  return f"its classes are {' and '.join(parts)}" if parts else "its classes are in another order"
