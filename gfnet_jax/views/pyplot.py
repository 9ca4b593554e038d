"""matplotlib, which only pictures need: where it is missing, in one line; and its files."""

from pathlib import Path
from types import ModuleType

from gfnet_jax.errors import UserError
from gfnet_jax.files import open_atomically
from gfnet_jax.text import printable

FORMATS = (".png", ".svg")
DPI = 150


def import_pyplot() -> ModuleType:
  """Imports matplotlib.pyplot, which then draws into files, whatever screen there is.

  Raises:
    UserError: if it is not installed.
  """
  try:
    import matplotlib
  except ModuleNotFoundError as error:
    raise UserError(
      "the pictures are drawn by matplotlib, which is not installed; pip install matplotlib "
      "(or gfnet_jax with its extra 'plots')"
    ) from error
  matplotlib.use("Agg")
  from matplotlib import pyplot

  return pyplot


def check_format(path: Path) -> None:
  """Raises UserError for a file that `save_figure` cannot write; to be called before the work."""
  if path.suffix.lower() not in FORMATS:
    raise UserError(
      f"the picture is {printable(path, 1000)}, expected a name that ends in "
      f"{' or '.join(FORMATS)}; choose another name"
    )


def save_figure(figure, path: Path, *, dpi: int = DPI) -> None:
  """Writes a matplotlib figure atomically, and closes it.

  Args:
    figure: a `matplotlib.figure.Figure` of `import_pyplot`.
    path: one of `FORMATS`.
    dpi: pixels per inch, of a PNG.

  Raises:
    UserError: if the file cannot be written, or has another ending.
  """
  try:
    check_format(path)
    with open_atomically(path) as file:
      figure.savefig(file, format=path.suffix[1:].lower(), dpi=dpi)
  except OSError as error:
    raise UserError(
      f"cannot write {printable(path, 1000)} ({error.strerror}); choose another name or make room"
    ) from error
  finally:
    import_pyplot().close(figure)
