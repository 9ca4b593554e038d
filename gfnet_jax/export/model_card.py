"""The README.md of a model on the Hugging Face hub: what it is, and what was measured."""

from collections.abc import Mapping
from typing import Any

import jax

from gfnet_jax.export.facts import describe
from gfnet_jax.files import to_json
from gfnet_jax.inference.metrics import METRICS
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.models.functional import split
from gfnet_jax.text import printable

SHOWN = 20  # names of classes
# Of a config: what the card says elsewhere, and what makes no other network, but says how it is
# trained and computed.
UNTOLD = (
  *("name", "image_size", "num_classes"),
  *("backend", "drop_path_rate", "dynamic_size", "filter_precision", "remat", "scan"),
)


def model_card(saved: SavedModel) -> str:
  """Markdown behind a block of YAML, as the hub reads it.

  Args:
    saved: the model, whose `measured` is what was measured.
  """
  return "\n".join([*_front_matter(saved), "", *_text(saved), ""])


def _results(saved: SavedModel, values: Mapping[str, float]) -> dict[str, float]:
  """The results of an evaluation by title, those that say something of so many classes."""
  return {
    f"{metric.title} accuracy (%)" if metric.percent else metric.title: values[name]
    for name, metric in METRICS.items()
    if name in values and saved.model.num_classes > metric.more_classes_than
  }


def _shown(title: str, value: float) -> str:
  return f"{value:.2f}" if "%" in title else f"{value:.4f}"


def _front_matter(saved: SavedModel) -> list[str]:
  """The hub's metadata: JSON, which is YAML, too, for whatever may be in a name."""
  task = "image-classification" if saved.model.num_classes else "image-feature-extraction"
  fields: dict[str, Any] = {
    "library_name": "gfnet_jax",
    "pipeline_tag": task,
    "tags": ["gfnet", "jax", "flax"],
  }
  if saved.measured:
    results = [
      {
        "task": {"type": task},
        "dataset": {"name": printable(data), "type": printable(data)},
        "metrics": [
          {"type": "accuracy" if "accuracy" in title else title, "name": title, "value": value}
          for title, value in _results(saved, values).items()
        ],
      }
      for data, values in saved.measured.items()
    ]
    fields["model-index"] = [{"name": saved.config["name"], "results": results}]
  return ["---", *(f"{name}: {to_json(value)}" for name, value in fields.items()), "---"]


def _text(saved: SavedModel) -> list[str]:
  facts = describe(saved, "float32")
  size = " x ".join(map(str, facts["image_size"]))
  parameters = sum(x.size for x in jax.tree.leaves(split(saved.model)[1]))
  classes = saved.model.num_classes
  others = ", ".join(f"{name}={x}" for name, x in saved.config.items() if name not in UNTOLD)
  scaled = "Images have that size"
  if facts["resize_to"]:
    covered = " x ".join(map(str, facts["resize_to"]))
    scaled = f"An image is scaled (bicubic) to cover {covered} pixels, and its centre is cut out"
  lines = [
    f"# {saved.config['name']}",
    "",
    f"A Global Filter Network (arXiv:2107.00645) of {parameters:,} parameters. It takes images of",
    f"{size} pixels (height x width){f' and knows {classes:,} classes' if classes else ''}.",
    *([f"It is built like {saved.config['name']}, with {printable(others)}."] if others else []),
    "",
    "```python",
    "import gfnet_jax",
    "",
    'saved = gfnet_jax.from_pretrained("OWNER/NAME")  # or the directory of this file',
    *(['print(saved.predict("photo.jpg"))'] if classes else []),
    "```",
    "",
    "## What was measured",
    "",
    *_measured(saved),
    "## Images",
    "",
    f"{scaled}. Normalised images are (pixels / 255 - mean) / std per channel, with mean",
    f"{facts['mean']} and std {facts['std']}.",
  ]
  if names := facts["class_names"]:
    shown = ", ".join(printable(name, 60) for name in names[:SHOWN])
    more = f", and {len(names) - SHOWN} more in config.json" if len(names) > SHOWN else ""
    lines += ["", "## Classes", "", f"    {shown}{more}"]  # as code, whatever is in a name
  return lines


def _measured(saved: SavedModel) -> list[str]:
  if not saved.measured:
    return [
      "Nothing yet: no run of gfnet_jax has evaluated these weights. `gfnet-jax eval --checkpoint",
      "DIRECTORY --data IMAGES` does.",
      "",
    ]
  lines = []
  for data, values in saved.measured.items():
    images = f"On {values['images']:,} images of" if "images" in values else "On"
    after = f", after {saved.step:,} steps of training" if saved.step else ""
    lines += [
      f"{images} `{printable(data).replace('`', '?')}`{after}:",
      "",
      "| metric | value |",
      "|---|---|",
      *(
        f"| {title} | {_shown(title, value)} |" for title, value in _results(saved, values).items()
      ),
      "",
    ]
  return lines
