"""Every public name is documented, with its arguments; and the reference made of that."""

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator

import pytest
from helpers import ROOT

import gfnet_jax

sys.path.insert(0, str(ROOT / "tools"))
import api_reference

PUBLIC = sorted(set(gfnet_jax.__all__) - {"UserError"})


def public_definitions(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
  """A module and its classes, functions and methods, by dotted name."""
  yield name, node
  for child in node.body:
    public = isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_")
    if public and isinstance(child, ast.ClassDef):
      yield from public_definitions(child, f"{name}.{child.name}")
    elif public and child.name != "main":  # of a command: the module's docstring is its help
      yield f"{name}.{child.name}", child


def test_every_public_name_has_a_docstring():
  missing = []
  for path in sorted((ROOT / "gfnet_jax").rglob("*.py")):
    module = ast.parse(path.read_text())
    for name, node in public_definitions(module, path.relative_to(ROOT).as_posix()):
      if not ast.get_docstring(node):
        missing.append(name)
  assert not missing, missing


def described(docstring: str, section: str) -> list[str]:
  """The names that a section of a docstring explains, as "NAME: ..." one step further in."""
  found = re.search(rf"^{section}:\n((?:  .*\n|\n)+)", f"{docstring}\n", re.MULTILINE)
  return re.findall(r"^  \*{0,2}(\w+):", found[1], re.MULTILINE) if found else []


@pytest.mark.parametrize("name", PUBLIC)
def test_the_arguments_of_public_names_are_explained(name):
  value = getattr(gfnet_jax, name)
  function = value.__init__ if inspect.isclass(value) else value
  arguments = [
    argument for argument in inspect.signature(function).parameters if argument != "self"
  ]
  docstring = inspect.getdoc(value)
  explained = described(docstring, "Args") or described(docstring, "Attributes")
  if explained or len(arguments) > 1:
    assert explained == arguments


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_say_what_they_raise(name):
  value = getattr(gfnet_jax, name)
  if "raise UserError" in inspect.getsource(value):
    methods = [method for _, method in inspect.getmembers(value, inspect.isfunction)]
    told = [inspect.getdoc(one) or "" for one in (value, *methods)]
    assert any(described(text, "Raises") for text in told)


def test_the_reader_of_docstrings():
  docstring = (
    "Does.\n\nArgs:\n  one: a thing\n    see: below\n  **two: others.\n\nRaises:\n  X: no.\n"
  )
  assert described(docstring, "Args") == ["one", "two"]
  assert described(docstring, "Raises") == ["X"]
  assert described(docstring, "Returns") == []


def test_the_reference_has_every_package():
  modules = api_reference.modules()
  assert {"gfnet_jax.models", "gfnet_jax.errors", "gfnet_jax.training"} <= set(modules)
  assert "gfnet_jax.commands" not in modules
  for name in api_reference.LEFT_OUT:
    assert importlib.util.find_spec(name)


def test_broken_links_of_the_reference_are_found(tmp_path):
  (tmp_path / "sub").mkdir()
  (tmp_path / "index.html").write_text(
    '<a href="sub/a.html#x">1</a><a href="https://x.org">2</a><a href="#gone">3</a>'
  )
  (tmp_path / "sub/a.html").write_text(
    '<p id="x"><a href="../index.html">1</a><a href="b.html">2</a><a href="../index.html#y">3</a>'
  )
  assert api_reference.broken_links(tmp_path) == [
    "index.html: #gone",
    "sub/a.html: b.html",
    "sub/a.html: ../index.html#y",
  ]


def test_without_pdoc_one_line_says_what_to_install(in_process, monkeypatch):
  monkeypatch.setitem(sys.modules, "pdoc", None)
  code, _, error = in_process("tools/api_reference.py")
  assert code == 2
  assert error == "error: pdoc is not installed; pip install -r requirements-docs.txt\n"
