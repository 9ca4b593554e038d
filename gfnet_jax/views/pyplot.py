"""matplotlib, which only pictures need: where it is missing, in one line."""

from types import ModuleType

from gfnet_jax.errors import UserError


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
      "(of an installed gfnet_jax, the extra 'plots')"
    ) from error
  matplotlib.use("Agg")
  from matplotlib import pyplot

  return pyplot
