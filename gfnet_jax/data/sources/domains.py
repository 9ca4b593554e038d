"""Data sets of several domains with the same classes, of which one is held out.

Of the domain that is held out, the splits train and val look at the names of folders only.
"""

from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np

from gfnet_jax.data.sources.digit_domains import DOMAINS, open_digit_domain
from gfnet_jax.data.sources.folder import FolderSource
from gfnet_jax.data.sources.joined import Joined
from gfnet_jax.data.sources.listing import class_order, is_left_out
from gfnet_jax.data.sources.open import check_same_classes
from gfnet_jax.data.sources.photos import Selected, select
from gfnet_jax.data.sources.records import Source, required_name
from gfnet_jax.errors import UserError
from gfnet_jax.names import look_up
from gfnet_jax.text import printable

SPLITS = ("train", "val", "test")
DIGITS = "digits"
VALIDATION_SHARE = 0.1  # of every class of every domain, where none is set apart


def open_domains(data: ml_collections.ConfigDict, split: str) -> Source:
  """The source 'domains': DIRECTORY/DOMAIN/CLASS/ or DIRECTORY/DOMAIN/FOLDER/CLASS/.

  Args:
    data: section of a config. name is the directory, or digits for those of `digit_domains`;
      domains are the names of the domains, () for all that are there; held_out is one of them;
      folders are the two in each domain that hold the classes of its training and its validation
      images, () if there are none: then validation images are those of DOMAIN_crossval_kfold.txt
      in the directory or in its folder splits, and training images those of
      DOMAIN_train_kfold.txt; where these files are not there either, `hold_out` chooses a tenth.
    split: train or val, of all domains but the one held out, in parts; or test, all images of that
      one.

  Raises:
    UserError: for another split, a domain that is not there, or domains of different classes.
  """
  if split not in SPLITS:
    raise UserError(f"the split is {printable(split)!r}, expected one of {', '.join(SPLITS)}")
  name, domains = required_name(data), find_domains(data)
  held_out = data.get("held_out") or ""
  if not held_out:
    raise UserError(
      f"data.held_out is empty, expected one of {', '.join(map(printable, domains))}; set it, such "
      f"as --config.data.held_out={printable(domains[0])}"
    )
  look_up("domain in data.held_out", held_out, dict.fromkeys(domains))
  trained = [domain for domain in domains if domain != held_out]
  if name == DIGITS:
    opened = {
      domain: open_digit_domain(domain, split, data.get("data_dir", ""))
      for domain in ([held_out] if split == "test" else trained)
    }
    return Joined(opened)
  folders = tuple(data.get("folders") or ())
  _check_classes(Path(name), domains, folders)
  if split == "test":
    return Joined(
      {
        f"{held_out}/{folder}".rstrip("/"): FolderSource(name, f"{held_out}/{folder}")
        for folder in folders or ("",)
      }
    )
  return Joined({domain: _open_part(Path(name), domain, split, folders) for domain in trained})


def find_domains(data: ml_collections.ConfigDict) -> list[str]:
  """The domains of a data set, in the order of `data.domains`, or of their names; all are there.

  Args:
    data: as for `open_domains`.

  Raises:
    UserError: if one is missing, or there are not at least two.
  """
  name, wanted = required_name(data), tuple(data.get("domains") or ())
  if name == DIGITS:
    found = list(DOMAINS)
  else:
    found = _folder_names(Path(name))
    # Lists of files may lie beside the domains; they are in no folder of a class.
    found = [domain for domain in found if _folder_names(Path(name) / domain)]
  there = ", ".join(printable(domain, 40) for domain in found) or "no folder of folders"
  for domain in wanted:
    if domain not in found:
      raise UserError(
        f"{name} has no domain {printable(domain)}, expected {', '.join(map(printable, wanted))}; "
        f"found {there}; set data.name to another directory, or data.domains to what is there"
      )
  domains = list(wanted) or found
  if len(domains) < 2:
    raise UserError(
      f"{name} holds {there}, expected a folder for each of at least two domains, with a folder "
      "for each class; set data.name to such a directory"
    )
  return domains


def _folder_names(directory: Path) -> list[str]:
  """The names of the folders in a directory.

  Raises:
    UserError: if it cannot be read.
  """
  try:
    entries = [entry.name for entry in directory.iterdir() if entry.is_dir()]
  except OSError as error:
    raise UserError(
      f"directory {directory} cannot be read ({error.strerror}), expected a folder for each "
      "domain; set data.name to another one"
    ) from error
  return sorted(entry for entry in entries if not is_left_out(entry))


def _check_classes(root: Path, domains: Sequence[str], folders: Sequence[str]) -> None:
  """Raises UserError unless all domains have the same folders of classes; reads names only."""
  if len(folders) not in (0, 2):
    raise UserError(
      f"data.folders is {tuple(folders)}, expected two, of the training and of the validation "
      "images of a domain, or ()"
    )
  first = None
  for domain in domains:
    for folder in folders or ("",):
      classes = class_order(_folder_names(root / domain / folder))
      first = first or classes
      check_same_classes(classes, first, str(root / domain / folder))


def _open_part(root: Path, domain: str, split: str, folders: Sequence[str]) -> Source:
  """The training or the validation images of a domain."""
  if folders:
    return FolderSource(str(root), f"{domain}/{folders[SPLITS.index(split)]}")
  source = FolderSource(str(root), domain, quiet=split == "val")
  listed = {kind: _read_list(root, domain, kind) for kind in ("train", "crossval")}
  if not any(listed.values()):
    return select(source, root / domain, split, VALIDATION_SHARE)
  for kind, found in listed.items():
    if found is None:  # other images than those of the benchmark would be chosen
      raise UserError(
        f"{root} has only one of the two lists of {domain}, expected {domain}_{kind}_kfold.txt as "
        "well; copy it, or remove the other"
      )
  index_of = {f"{domain}/".encode() + name: i for i, name in enumerate(source.record_names())}
  wanted = listed["train" if split == "train" else "crossval"]
  for name in wanted:
    if name not in index_of:
      raise UserError(
        f"{root / printable(name.decode(errors='replace'))} is in the list of {domain}'s images "
        f"for {split}, but not there; copy the data set again, or remove the lists"
      )
  return Selected(source, np.array([index_of[name] for name in wanted], int))


def _read_list(root: Path, domain: str, kind: str) -> list[bytes] | None:
  """The images in a list of PACS, "DOMAIN/CLASS/FILE LABEL" in every line; None if it is not there.

  Raises:
    UserError: if it cannot be read or names none.
  """
  name = f"{domain}_{kind}_kfold.txt"
  path = next((path for path in (root / name, root / "splits" / name) if path.is_file()), None)
  if path is None:
    return None
  try:
    lines = path.read_bytes().splitlines()
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror}); copy it again") from error
  names = [line.rpartition(b" ")[0] for line in lines if line.strip()]
  if not names:
    raise UserError(f"{path} names no images, expected a line for each; copy it again")
  return names
