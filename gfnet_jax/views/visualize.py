"""From a saved model to pictures of its filters in a folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

from gfnet_jax.files import make_directory, write_atomically
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.views.figures import draw_all
from gfnet_jax.views.filters import check_channels, filter_layers, select_layers
from gfnet_jax.views.page import make_page
from gfnet_jax.views.pyplot import import_pyplot


def visualize_filters(
  source: Path | str,
  directory: Path | str,
  *,
  layers: Sequence[int] | None = None,
  channels: Sequence[int] | None = None,
  suffix: str = "png",
  page_only: bool = False,
  which: str = "last",
  ema: bool = False,
  on_file: Callable[[Path], object] = lambda path: None,
) -> list[Path]:
  """Draws the filters of a model.

  Args:
    source: of the model, see `load_model`.
    directory: receives filters.png (filters-stage0.png, ... of several stages), energy.png and
      filters.html.
    layers: their numbers, from 0; None for all.
    channels: the columns of the figures, from 0; None for the first 24.
    suffix: of the figures, "png" or "svg".
    page_only: whether to draw only filters.html, which needs no matplotlib.
    which: of the checkpoints, see `load_model`.
    ema: take the moving averages of the parameters.
    on_file: is called with the path of each file when it is written.

  Returns:
    These paths.

  Raises:
    UserError: if there is no model, it has no filters, no such layer or channel, the directory
      cannot be written, or matplotlib is missing.
  """
  if not page_only:
    import_pyplot()  # before the model is read
  found = filter_layers(load_model(source, which, ema=ema).model.trunk)
  chosen = found if layers is None else select_layers(found, layers)
  if channels is not None:
    check_channels(chosen, channels)
  directory = Path(directory)
  make_directory(directory)
  files = []
  if not page_only:
    for file in draw_all(chosen, channels, directory, suffix):
      on_file(file)
      files.append(file)
  page = directory / "filters.html"
  write_atomically(page, make_page(chosen, Path(source).resolve().name))
  on_file(page)
  return [*files, page]
