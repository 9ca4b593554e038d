"""Files that are there whole or not at all."""

from pathlib import Path

from gfnet_jax.errors import UserError


def make_directory(directory: Path) -> None:
  """Creates a directory with its parents and makes sure that it can be written.

  Raises:
    UserError: if not.
  """
  probe = directory / ".write-test"
  try:
    directory.mkdir(parents=True, exist_ok=True)
    probe.touch()
    probe.unlink(missing_ok=True)  # another process may have probed, too
  except FileExistsError as error:
    raise UserError(f"{directory} is a file, expected a directory; choose another name") from error
  except OSError as error:
    raise UserError(
      f"cannot write to {directory} ({error.strerror}); choose another directory or change its "
      "permissions"
    ) from error


def write_atomically(path: Path, text: str) -> None:
  """Replaces the text of a file in one step: a kill leaves the old one or the new one."""
  temporary = path.with_name(path.name + ".tmp")
  try:
    temporary.write_text(text)
    temporary.replace(path)
  except OSError:
    temporary.unlink(missing_ok=True)
    raise
