"""Figures of the filters of a model, drawn by matplotlib."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gfnet_jax.views.filters import (
  HIGH,
  FilterLayer,
  by_stage,
  high_share,
  radial_profile,
)
from gfnet_jax.views.mosaic import kernels, magnitudes
from gfnet_jax.views.pyplot import import_pyplot

COLUMNS = 24  # channels of the paper's figure
PANEL = 8.0  # inches, the width of a panel
DPI = 150


def draw_all(
  layers: Sequence[FilterLayer], channels: Sequence[int] | None, directory: Path, suffix: str
) -> Iterator[Path]:
  """Draws all figures into a directory; yields the path of each when it is written.

  Args:
    layers: some of a model.
    channels: the columns; None for the first 24.
    directory: must exist.
    suffix: "png" or "svg".

  Raises:
    UserError: if matplotlib is missing.
  """
  pyplot = import_pyplot()
  stages = by_stage(layers)
  for stage in stages:
    columns = range(min(COLUMNS, stage[0].kernel.shape[-1])) if channels is None else channels
    number = f"-stage{stage[0].stage}" if len(stages) > 1 else ""
    figure = draw_filters(pyplot, stage, list(columns))
    yield _save(pyplot, figure, directory / f"filters{number}.{suffix}")
  yield _save(pyplot, draw_energy(pyplot, layers), directory / f"energy.{suffix}")


def _save(pyplot, figure, path: Path) -> Path:
  figure.savefig(path, dpi=DPI)
  pyplot.close(figure)
  return path


def draw_filters(pyplot, layers: list[FilterLayer], channels: list[int]):
  """The paper's figure, and the kernels beside it: rows are layers, columns channels."""
  height, width, _ = layers[0].kernel.shape
  rows = len(layers) * (height + 1) / (len(channels) * (width + 1))  # per width of a panel
  size = (2 * PANEL + 2, max(1.5, PANEL * rows) + 1)
  figure, (left, right) = pyplot.subplots(1, 2, figsize=size, layout="constrained")
  spectra, impulses = magnitudes(layers, channels), kernels(layers, channels)
  # Most kernels have one peak; its height would leave the rest white.
  most = float(np.nanquantile(np.abs(impulses), 0.995)) or 1.0
  for axes, picture, title, colours in (
    (left, spectra, "magnitude, the mean in the centre", dict(cmap="YlGnBu", vmin=0)),
    (
      right,
      impulses,
      "kernel, the token in the centre",
      dict(cmap="RdBu_r", vmin=-most, vmax=most),
    ),
  ):
    image = axes.imshow(picture, interpolation="none", **colours)
    middles = [i * (height + 1) + height / 2 for i in range(len(layers))]
    axes.set_yticks(middles, [layer.name for layer in layers], fontsize=8)
    middles = [i * (width + 1) + width / 2 for i in range(len(channels))]
    axes.set_xticks(middles, channels, fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(title=title, xlabel="channel")
    extend = "neither" if axes is left else "both"
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, extend=extend)
  return figure


def draw_energy(pyplot, layers: Sequence[FilterLayer]):
  """How strongly each layer passes low and high frequencies."""
  figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
  colours = pyplot.get_cmap("viridis")(np.linspace(0, 0.92, len(layers)))
  for layer, colour in zip(layers, colours, strict=True):
    radii, energy = radial_profile(layer.response)
    left.plot(radii, energy.mean(-1), ".-", color=colour, label=layer.name, linewidth=1.2)
  left.set_yscale("log", nonpositive="mask")
  top = left.get_ylim()[1]
  left.set_ylim(max(left.get_ylim()[0], 1e-10 * top), top)  # below is what float32 has rounded
  left.set(
    xlabel="frequency in cycles per token",
    ylabel="mean squared magnitude",
    title="low to high frequencies",
  )
  left.grid(alpha=0.3)
  left.legend(fontsize=7, ncols=1 + len(layers) // 13)
  shares = [100 * high_share(layer.response) for layer in layers]
  right.bar(range(len(layers)), shares, color=colours)
  right.set_xticks(range(len(layers)), [layer.name for layer in layers], rotation=90, fontsize=8)
  right.set(ylabel="% of the energy", ylim=(0, 100), title=f"above {HIGH} cycles per token")
  right.grid(alpha=0.3, axis="y")
  return figure
