"""Reads Markdown documents: blocks of code, anchors, and the commands that they teach."""

import re
import string
from collections.abc import Iterator
from typing import NamedTuple


class Block(NamedTuple):
  language: str  # "" of plain and of indented ones
  text: str


def code_blocks(text: str) -> Iterator[Block]:
  """Fenced blocks, and indented ones behind an empty line."""
  for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
    yield Block(*found.groups())
  text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
  for found in re.finditer(r"(?<=\n)\n((?: {4}.*\n|\n(?= {4}))+)", text):
    yield Block("", re.sub("^    ", "", found[1], flags=re.MULTILINE))


def prose(text: str) -> str:
  """A document without its blocks of code."""
  text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
  return re.sub(r"(?<=\n)\n((?: {4}.*\n|\n(?= {4}))+)", "\n", text)


def spans(text: str) -> list[str]:
  """What stands in backticks; a `|` in a table is written with a backslash."""
  found = re.findall(r"`([^`]+)`", prose(text))
  return [" ".join(span.replace("\\|", "|").split()) for span in found]


def anchors(text: str) -> set[str]:
  """The anchors of a document's headings, as GitHub makes them."""
  found, kept = [], set(string.ascii_lowercase + string.digits + " -_")
  for heading in re.findall(r"^#+ +(.*)$", prose(text), re.MULTILINE):
    shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
    name = "".join(c for c in shown if c in kept or c.isalpha()).replace(" ", "-")
    found.append(f"{name}-{found.count(name)}" if name in found else name)
  return set(found)


def typed_lines(text: str) -> Iterator[str]:
  """The lines in blocks of code for a shell; one that goes on behind a backslash is one."""
  for block in code_blocks(text):
    if block.language in ("", "bash", "sh"):
      yield from re.sub(r" *\\\n *", " ", block.text).splitlines()


def typed_commands(text: str) -> Iterator[str]:
  """The commands of Python and of this project in blocks of code."""
  for line in typed_lines(text):
    yield from commands(line)


def commands(line: str) -> Iterator[str]:
  """The commands of Python and of this project in a shell line, without comments and variables."""
  for part in parts(line.replace("$(seq 24 47)", "24 47")):
    words = re.sub(r"^([A-Z_]+=\S*\s+|srun |mpirun )*", "", part)
    if words.startswith(("python ", "gfnet-jax ")):
      yield words


def parts(line: str) -> Iterator[str]:
  """All commands in a shell line, as typed, but without comments."""
  for part in re.split(r"&&|;|\||>", re.sub(r"(^|\s)#.*", "", line)):
    if part.strip():
      yield part.strip()
