"""What the processes of a run must have in common, which is compared before the first step."""

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import ml_collections
import numpy as np
import optax
import PIL

import gfnet_jax
from gfnet_jax.distributed import exchange
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable
from gfnet_jax.training.config_rules import flatten

# May differ: where the data lie on a machine, whose fingerprints are compared, and how it is read.
OWN = ("data.name", "data.data_dir", "data.verify_crc", "data.reading.")
LIBRARIES = (jax, jaxlib, flax, optax, np, PIL)
LISTED = 8  # differences in a message


def check_agreement(facts: dict[str, Any]) -> None:
  """Compares facts of all processes with those of process 0.

  Args:
    facts: values by name, which JSON can hold.

  Raises:
    UserError: in every process, naming the first process that differs, and in what.
  """
  first, *others = [json.loads(text) for text in exchange(json.dumps(facts))]
  for process, found in enumerate(others, 1):
    different = [
      f"{name} is {_shown(found, name)} there and {_shown(first, name)} in process 0"
      for name in sorted(first.keys() | found.keys())
      if repr(first.get(name)) != repr(found.get(name))  # NaN is no number's equal
    ]
    if different:
      more = f", and {len(different) - LISTED} more" if len(different) > LISTED else ""
      raise UserError(
        f"process {process} does not do what process 0 does: "
        f"{', '.join(different[:LISTED])}{more}; start all with the same code and the same command"
      )


def _shown(facts: dict[str, Any], name: str) -> str:
  return printable(facts[name], 60) if name in facts else "not there"


def describe_program(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The facts that are known without the data: config, code, libraries and devices."""
  fields = flatten(json.loads(config.to_json()))
  return {
    **{name: value for name, value in fields.items() if not name.startswith(OWN)},
    "the code of gfnet_jax": _code(),
    **{f"the version of {library.__name__}": library.__version__ for library in LIBRARIES},
    "the version of Python": platform.python_version(),
    "jax_enable_x64": jax.config.jax_enable_x64,
    "the number of local devices": jax.local_device_count(),
  }


def describe_data(
  fingerprints: dict[str, dict[str, Any]], class_names: list[str]
) -> dict[str, Any]:
  """The facts of the data: images and names of every split, and the classes, in few bytes."""
  digest = hashlib.sha256("\0".join(class_names).encode("utf-8", "surrogateescape")).hexdigest()
  classes = f"{len(class_names)}, SHA-256 {digest[:8]}"
  return flatten({"data": fingerprints}) | {"the number of classes and their names": classes}


def _code() -> str:
  """The version, and a few digits of the SHA-256 of all modules."""
  package = Path(gfnet_jax.__file__).parent
  digest = hashlib.sha256()
  for path in sorted(package.rglob("*.py")):
    digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
  return f"{gfnet_jax.__version__} ({digest.hexdigest()[:8]})"
