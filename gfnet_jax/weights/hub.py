"""Models of the Hugging Face hub, by its own library (the extra `hub`)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gfnet_jax.checkpoints.checksums import LARGEST_TEXT
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable
from gfnet_jax.weights.pretrained import CONFIG, WEIGHTS, read_config
from gfnet_jax.weights.sizes import NUMBERS_LIMIT

MOST_BYTES = 8 * NUMBERS_LIMIT  # of weights, in float64
# As pathlib makes hf:/owner/name of it.
_ADDRESS = re.compile(r"hf:/{1,2}([^@]*)(?:@(.*))?", re.DOTALL)
_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def parse_address(address: Path | str) -> tuple[str, str | None] | None:
  """The name and the revision in hf://OWNER/NAME or hf://OWNER/NAME@REVISION, else None."""
  found = _ADDRESS.fullmatch(str(address))
  return (found[1], found[2]) if found else None


def is_name(text: str) -> bool:
  """Whether a text may be the name of a model on the hub: OWNER/NAME."""
  return _NAME.fullmatch(text) is not None


def fetch_from_hub(name: str, revision: str | None = None) -> Path:
  """Returns a directory with the config and the weights of a model on the hub.

  They are kept in the cache of huggingface_hub; its environment variables apply
  (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE). Nothing else of the model is downloaded.

  Args:
    name: OWNER/NAME.
    revision: a branch, a tag or a commit; None for the newest of the main branch.

  Raises:
    UserError: if huggingface_hub is not installed, the hub cannot be reached, or has no such
      model, revision or file for us, a file is too large, or not of `save_pretrained`.
  """
  if not is_name(name):
    raise UserError(f"{printable(name)} is not a model of the hub, expected OWNER/NAME")
  with _asking(name, revision):
    directory = _download(name, CONFIG, revision, LARGEST_TEXT)
    read_config(directory)  # before the weights of another library come
    # Of the same commit, should there be a new one meanwhile.
    return _download(name, WEIGHTS, directory.name, MOST_BYTES)


def _download(name: str, file: str, revision: str | None, limit: int) -> Path:
  """The directory of a file, which is in the cache now.

  Raises:
    UserError: if the file has more bytes than the limit; it is not downloaded then.
  """
  from huggingface_hub import hf_hub_download

  size = hf_hub_download(name, file, revision=revision, dry_run=True).file_size
  if size is not None and size > limit:
    raise UserError(
      f"{file} of {name} has {size:,} bytes, expected at most {limit:,} of a GFNet; is it the "
      "right model? It was not downloaded"
    )
  return Path(hf_hub_download(name, file, revision=revision)).parent


@contextmanager
def _asking(name: str, revision: str | None) -> Iterator[None]:
  """Raises UserError for what the hub refuses, or if it cannot be asked."""
  try:
    from huggingface_hub import errors
  except ImportError as error:
    raise UserError(
      f"models of the hub, such as {name}, need huggingface_hub; pip install huggingface_hub (the "
      "extra hub), or give a directory"
    ) from error

  where = f"{name} at revision {printable(revision)}" if revision else name
  try:
    yield
  except UserError:  # of what was downloaded
    raise
  except errors.GatedRepoError as error:
    raise UserError(f"{name} is gated; ask for access on its page, and set HF_TOKEN") from error
  except errors.RepositoryNotFoundError as error:
    raise UserError(
      f"the hub has no model {name}, or not for everyone; check the name, and set HF_TOKEN if it "
      "is private"
    ) from error
  except errors.RevisionNotFoundError as error:
    raise UserError(f"the hub has no {where}; name a branch, a tag or a commit of it") from error
  except errors.RemoteEntryNotFoundError as error:
    raise UserError(
      f"{where} lacks {CONFIG} or {WEIGHTS}; expected a model of gfnet_jax.save_pretrained"
    ) from error
  except (OSError, ValueError, errors.HTTPError) as error:
    reason = printable(" ".join(str(error).split()) or type(error).__name__)
    raise UserError(
      f"cannot get {where} from the hub ({reason}); see whether it can be reached, or download "
      "the model by other means and give its directory"
    ) from error
