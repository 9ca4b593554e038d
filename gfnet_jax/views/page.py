"""One HTML page with all filters of a model, which a browser opens from a file."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gfnet_jax.files import to_json
from gfnet_jax.text import printable
from gfnet_jax.views.filters import FilterLayer

TEMPLATE = Path(__file__).with_suffix(".html")
MOST_BYTES = 9 * 2**19  # of numbers; a third more as text
LEVELS = 255  # of a magnitude, as square roots: fine where it is small
TURN = 256  # steps of a phase in a turn


def make_page(layers: Sequence[FilterLayer], title: str) -> str:
  """The page: a layer and a channel are picked, and its magnitude, phase and kernel shown.

  Responses are held as one byte for the magnitude and one for the phase of every frequency of
  the half spectrum. If those of all channels are more than `MOST_BYTES`, each layer shows
  the first of its channels, as many as there is room for in proportion, and says so.

  Args:
    layers: at least one.
    title: what the model is called.
  """
  total = sum(2 * half_spectrum(layer).size for layer in layers)
  share = min(1.0, MOST_BYTES / total)
  data = {"title": printable(title), "layers": [_encode(layer, share) for layer in layers]}
  text = to_json(data).replace("<", "\\u003c")  # or a title could end the script
  template = TEMPLATE.read_text(encoding="utf-8")
  return template.replace("{{title}}", html.escape(printable(title))).replace("{{data}}", text)


def half_spectrum(layer: FilterLayer) -> np.ndarray:
  """(channels, height, width // 2 + 1): the rest are mirror images."""
  width = layer.response.shape[1]
  return layer.response[:, : width // 2 + 1].transpose(2, 0, 1)


def _encode(layer: FilterLayer, share: float) -> dict[str, str | int]:
  height, width, channels = layer.response.shape
  shown = max(1, int(share * channels))
  half = half_spectrum(layer)[:shown]
  magnitudes = np.abs(half)
  scales = magnitudes.max((1, 2))
  relative = magnitudes / np.where(scales, scales, 1)[:, None, None]
  phases = np.rint(np.angle(half) / (2 * np.pi) * TURN)
  return {
    "name": layer.name,
    "height": height,
    "width": width,
    "channels": channels,
    "shown": shown,
    "scales": _to_base64(scales.astype("<f4")),
    "magnitudes": _to_base64(np.rint(LEVELS * np.sqrt(relative)).astype(np.uint8)),
    "phases": _to_base64((phases.astype(int) % TURN).astype(np.uint8)),
  }


def _to_base64(array: np.ndarray) -> str:
  return base64.b64encode(array.tobytes()).decode("ascii")
