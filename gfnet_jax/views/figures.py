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
from gfnet_jax.views.pyplot import DPI, import_pyplot, save_figure

COLUMNS = 24  # channels of the paper's figure
PANEL = 8.0  # inches, the width of a panel
LABELS = 12  # at most, in the legend of a panel


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
    yield _save(figure, directory / f"filters{number}.{suffix}")
  yield _save(draw_energy(pyplot, layers), directory / f"energy.{suffix}")


def _save(figure, path: Path) -> Path:
  save_figure(figure, path, dpi=DPI)
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
  """How strongly each layer passes low and high frequencies: a panel per stage, then shares."""
  stages = by_stage(layers)
  panels = len(stages) + 1
  size = (max(11, 3.6 * panels), 4.2)
  figure, (*profiles, shares) = pyplot.subplots(1, panels, figsize=size, layout="constrained")
  colours = iter(pyplot.get_cmap("viridis")(np.linspace(0, 0.92, len(layers))))
  labelled = -(-len(layers) // LABELS)  # every so many lines have one
  for axes, stage in zip(profiles, stages, strict=True):
    for i, layer in enumerate(stage):
      radii, energy = radial_profile(layer.response)
      label = layer.name if i % labelled == 0 else None
      axes.plot(radii, energy.mean(-1), ".-", color=next(colours), label=label, linewidth=1.2)
    axes.set_yscale("log", nonpositive="mask")
    top = axes.get_ylim()[1]
    axes.set_ylim(max(axes.get_ylim()[0], 1e-10 * top), top)  # below is what float32 has rounded
    height, width, _ = stage[0].kernel.shape
    axes.set(xlabel="cycles per token", title=f"{height} x {width} tokens")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
  profiles[0].set_ylabel("mean squared magnitude")
  colours = pyplot.get_cmap("viridis")(np.linspace(0, 0.92, len(layers)))
  shares.bar(range(len(layers)), [100 * high_share(x.response) for x in layers], color=colours)
  shares.set_xticks(range(len(layers)), [x.name for x in layers], rotation=90, fontsize=6)
  shares.set(ylabel="% of the energy", ylim=(0, 100), title=f"above {HIGH} cycles per token")
  shares.grid(alpha=0.3, axis="y")
  return figure
