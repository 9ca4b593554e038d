"""Every link, file, config field and command that the documents name is there."""

import argparse
import ast
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from documents import anchors, code_blocks, commands, prose, spans, typed_commands
from helpers import ROOT
from ml_collections import ConfigDict

import gfnet_jax
from gfnet_jax import __main__, startup
from gfnet_jax.config_files import load_config, read_config

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
TAUGHT = [  # their docstrings hold commands
  path
  for folder in ("gfnet_jax/commands", "configs", "tools")
  for path in sorted((ROOT / folder).rglob("*.py"))
]
# Named in a document, and made by who follows it or kept by somebody else.
ELSEWHERE = {
  *("configs/npz.py", "gfnet_jax/data/sources/npz.py", "gfnet_jax/training/filter_image.py"),
  *("mine.py", "main_gfnet.py", "main_gfnet_transfer.py", "prepare_tfds.py"),
  *("tools/accelerator.sh", "data.DIR", "model.safetensors"),
}
NEW_FIELDS = {"filter_image_every_steps"}  # of the recipe
FOLDERS = ("configs", "docs", "examples", "gfnet_jax", "tests", "tools")


def test_the_readers_of_documents():
  text = (
    "# One `x`\n\nSee [a](b.md#c).\n\n    A=1 python t.py \\\n      --b  # c\n\n## One x\n"
    "```bash\ngfnet-jax models | head\n```\n| `python u.py \\| head` |\n"
  )
  assert anchors(text) == {"one-x", "one-x-1"}
  assert list(typed_commands(text)) == ["gfnet-jax models", "python t.py --b"]
  assert [command for span in spans(text) for command in commands(span)] == ["python u.py"]
  assert "```" not in prose(text) and "t.py" not in prose(text)
  assert anchors("# What may change: it's (so), C++\n") == {"what-may-change-its-so-c"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
  for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
    if re.match(r"[a-z]+:", target):
      continue  # of the web: never asked here
    name, _, anchor = target.partition("#")
    other = (path.parent / name).resolve() if name else path
    assert other.exists(), f"{path.name}: no file {name}"
    assert other.is_relative_to(ROOT), f"{path.name}: {name} is outside of the repository"
    if anchor:
      assert anchor in anchors(other.read_text()), f"{path.name}: no heading #{anchor} in {name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_are_there(path):
  names = {file.relative_to(ROOT).as_posix() for file in files()}
  for span in spans(path.read_text()):
    if not re.fullmatch(r"[\w./-]+", span) or span in ELSEWHERE:
      continue
    inside = span.split("/")[0] in FOLDERS and "/" in span
    if inside or re.fullmatch(r"[\w./-]+\.(py|md|cff|toml)", span):
      there = (ROOT / span).exists() or any(f"/{name}".endswith(f"/{span}") for name in names)
      assert there, f"{path.name}: no file {span}"


def files() -> list[Path]:
  roots = [ROOT / folder for folder in FOLDERS if (ROOT / folder).is_dir()]
  return [*ROOT.glob("*.*"), *(file for root in roots for file in root.rglob("*.*"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_config_fields_exist(path):
  config = load_config("default")
  text = path.read_text()
  named = set(re.findall(r"--config\.([a-z_0-9.]+)", text))
  sections = "|".join(name for name in config if isinstance(config[name], ConfigDict))
  field = rf"(?:config\.(?=[a-z])|(?=(?:{sections})\.))([a-z_0-9.]+)(?:=.*)?"
  for span in spans(text):
    found = re.fullmatch(field, span)
    if found and not re.search(r"\.(jsonl?|py)$|^model\.forward_", span):  # files, methods
      named.add(found[1])
  for field in {name.rstrip(".") for name in named} - NEW_FIELDS - ELSEWHERE:
    value = config
    for part in field.split("."):
      assert isinstance(value, ConfigDict) and part in value, f"{path.name}: no field {field}"
      value = value[part]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_public_names_exist(path):
  for block in code_blocks(path.read_text()):
    for name in re.findall(r"\bgfnet_jax\.(\w+)", block.text):
      there = name in dir(gfnet_jax) or (ROOT / f"gfnet_jax/{name}.py").exists()
      assert there, f"{path.name}: gfnet_jax has no {name}"


class Accepted(Exception):
  """A parser has taken the flags; what would be done next is not done."""

  def __init__(self, options: argparse.Namespace, overrides: list[str]):
    self.options, self.overrides = options, overrides


@pytest.fixture
def only_parse(monkeypatch):
  """Commands end with `Accepted` once their flags are read."""
  running = []  # parsers call each other, for subcommands

  def outermost(method):
    def parse(parser, arguments=None, *others):
      running.append(method)
      try:
        result = method(parser, arguments, *others)
      finally:
        running.pop()
      if not running:
        raise Accepted(*(result if isinstance(result, tuple) else (result, [])))
      return result

    return parse

  for name in ("parse_args", "parse_known_args"):
    monkeypatch.setattr(
      argparse.ArgumentParser, name, outermost(getattr(argparse.ArgumentParser, name))
    )
  monkeypatch.setattr(startup, "keep_freed_memory", lambda: None)
  monkeypatch.syspath_prepend(ROOT / "tools")  # as for Python that runs a script there
  monkeypatch.chdir(ROOT)


def check_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
  """Gives a command to its parser, and the config that it names its overrides."""
  words = shlex.split(command)
  if words[0] == "gfnet-jax":
    words = ["python", "-m", "gfnet_jax", *words[1:]]
  script, arguments = words[1], words[2:]
  if script == "-m" and arguments[0] != "gfnet_jax":
    for word in arguments[1:]:  # of pytest or pip
      assert not word.startswith("tests/") or (ROOT / word.split("::")[0]).exists(), word
    return
  if script == "-m" and arguments[1:2] and arguments[1] in __main__.COMMANDS:
    main = importlib.import_module(f"gfnet_jax.commands.{arguments[1]}").main
    arguments = arguments[2:]
  elif script == "-m":
    main, arguments = __main__.main, arguments[1:]
  else:
    main = runpy.run_path(str(ROOT / script))["main"]
  monkeypatch.setattr(sys, "argv", [script, *arguments])
  try:
    main(arguments) if main.__code__.co_argcount else main()
  except SystemExit as end:
    assert end.code in (0, None) and "--help" in arguments, command
  except Accepted as accepted:
    specifier = getattr(accepted.options, "config", None)
    if specifier and specifier.partition(":")[0] not in {*ELSEWHERE, "..."}:
      read_config(specifier, accepted.overrides)
    else:
      assert all(override.startswith("--config.") for override in accepted.overrides)


@pytest.mark.parametrize(
  "path", [*DOCUMENTS, *TAUGHT], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_commands_are_accepted_as_typed(path, only_parse, monkeypatch, capsys):
  text = path.read_text()
  if path.suffix == ".py":
    docstring = ast.get_docstring(ast.parse(text)) or ""
    text = re.sub("^  (?=gfnet-jax|python)", "    ", f"\n{docstring}\n", flags=re.MULTILINE)
  named = [(command, False) for span in spans(text) for command in commands(span)]
  for command, whole in [*((command, True) for command in typed_commands(text)), *named]:
    if "COMMAND" in command or "WHAT" in command:
      continue
    try:
      check_command(command, monkeypatch)
    except Exception as error:
      # In a sentence, what a command needs may be left out.
      if whole or not re.search("arguments are required|one of the arguments", f"{error}"):
        raise AssertionError(f"{path.name}: {command}: {error}") from error
