"""The accuracies of the parts of a data set: of ImageNet-C's corruptions, or of domains."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gfnet_jax.data.sources.imagenet_sets import CORRUPTIONS, SEVERITIES, ImageNetSet
from gfnet_jax.inference.verdicts import Verdicts
from gfnet_jax.text import printable

# AlexNet's top-1 errors in percent, means over the five severities: what mCE is relative to
# (arXiv:1903.12261; the authors' list, also in the evaluation of Robust Vision Transformer).
ALEXNET = dict(
  zip(
    CORRUPTIONS,
    (
      *(88.6428, 89.4468, 92.2640),
      *(81.9880, 82.6268, 78.5948, 79.8360),
      *(86.6816, 82.6572, 81.9324, 56.4592),
      *(85.3204, 64.6056, 71.7840, 60.6500),
    ),
    strict=True,
  )
)


def summarize_parts(
  verdicts: Verdicts, parts: Mapping[str, int], named: ImageNetSet | None
) -> dict[str, Any]:
  """{"parts": of `count_parts`}, and for ImageNet-C what `corruption_errors` returns."""
  counts = count_parts(verdicts, parts)
  return {"parts": counts} | (corruption_errors(counts) if named and named.cut_out else {})


def count_parts(verdicts: Verdicts, parts: Mapping[str, int]) -> dict[str, dict[str, float]]:
  """The number of images and top-1 in percent of every part, by name.

  Args:
    verdicts: on all images, part by part.
    parts: how many images each has, in this order.
  """
  hits = np.split(verdicts.predicted == verdicts.labels, np.cumsum(list(parts.values()))[:-1])
  return {
    name: {"images": len(part), "top1": 100 * float(np.mean(part))}
    for name, part in zip(parts, hits, strict=True)
  }


def corruption_errors(parts: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
  """The errors of ImageNet-C (arXiv:1903.12261, section 4.3).

  Args:
    parts: of `count_parts`, by CORRUPTION/SEVERITY.

  Returns:
    {"corruptions": the mean top-1 error in percent over the severities by corruption, "mce": the
    mean over the corruptions of that error relative to AlexNet's, in percent; None unless all
    corruptions and severities are there}.
  """
  errors = {}
  for corruption in CORRUPTIONS:
    found = [f"{corruption}/{severity}" for severity in SEVERITIES]
    tops = [parts[name]["top1"] for name in found if name in parts]
    if tops:
      errors[corruption] = 100 - float(np.mean(tops))
  complete = len(parts) == len(CORRUPTIONS) * len(SEVERITIES)
  relative = [100 * error / ALEXNET[name] for name, error in errors.items()]
  return {"corruptions": errors, "mce": float(np.mean(relative)) if complete else None}


def describe_parts(results: Mapping[str, Any]) -> list[str]:
  """The lines for the parts in the results of an evaluation, if there are any."""
  if "corruptions" not in results:
    return [
      f"  {printable(name, 40):20} {part['top1']:6.2f} % of {part['images']}"
      for name, part in results.get("parts", {}).items()
    ]
  lines = [f"  {name:20} error {error:6.2f} %" for name, error in results["corruptions"].items()]
  if results["mce"] is not None:
    return [*lines, f"mCE {results['mce']:.2f}"]
  missing = len(CORRUPTIONS) * len(SEVERITIES) - len(results["parts"])
  return [*lines, f"no mCE, as {missing} of its 75 parts (CORRUPTION/SEVERITY) are not there"]
