"""The rules of the house: which way imports go, and how large its rooms are."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

# From the ground up: a module imports from its own floor and those below.
GROUND = (
  "buckets",
  "command_line",
  "config_files",
  "console",
  "distributed",
  "errors",
  "files",
  "losses",
  "metric_lines",
  "names",
  "sharding",
  "startup",
  "text",
  "transfers",
)
FLOORS = (
  "models",
  "data",
  "checkpoints",
  "weights",
  "inference",
  "export",
  "views",
  "training",
  "commands",
  "__main__",
)
ROOMS = {  # of libraries
  "fsspec": "buckets",
  "grain": "data",
  "tensorflow_datasets": "data",
  "orbax": "checkpoints",
  "torch": "weights",
  "onnx": "export",
  "huggingface_hub": "weights",
}
MODULE_LINES, FUNCTION_LINES = 300, 60


@functools.cache
def syntax_tree(path: Path) -> ast.Module:
  return ast.parse(path.read_text())


@functools.cache
def modules() -> dict[str, list[str]]:
  """What every module imports, by its dotted name."""
  imported = {}
  for path in sorted((ROOT / "gfnet_jax").rglob("*.py")):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    imported[name] = list(imports(syntax_tree(path)))
  return imported


def imports(tree: ast.AST) -> Iterator[str]:
  """What a module imports, anywhere in it but for type checkers only."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
      continue
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "absolute imports only"
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif not isinstance(node, ast.expr):  # there are no imports in expressions
      yield from imports(node)


def floor(module: str) -> int:
  _, *rooms = module.split(".")
  if not rooms:  # the package itself: its public names are imported on first use
    return -1
  return -1 if rooms[0] in GROUND else FLOORS.index(rooms[0])


def imported_modules(module: str) -> set[str]:
  """The modules of this project that a module imports; a package counts by what is in it."""
  found = {name for name in modules()[module] if name in modules()}
  return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def test_imports_go_downwards():
  for module in modules():
    for imported in imported_modules(module):
      assert floor(imported) <= floor(module), f"{module} imports {imported}, which is above it"


def test_no_imports_go_in_a_circle():
  graph = {module: imported_modules(module) for module in modules()}
  done = set()

  def visit(module: str, path: tuple[str, ...]) -> None:
    assert module not in path, " imports ".join((*path, module))
    if module not in done:
      for imported in graph[module] - {"gfnet_jax"}:
        visit(imported, (*path, module))
      done.add(module)

  for module in graph:
    visit(module, ())


def test_libraries_have_one_room_each():
  for module, names in modules().items():
    for imported in names:
      room = ROOMS.get(imported.split(".")[0])
      assert room is None or module.split(".")[1] == room, f"{module} imports {imported}"


def test_every_module_is_on_the_map():
  text = (ROOT / "docs/architecture.md").read_text()
  tree = text.partition("## The tree")[2].partition("\n## ")[0]
  for path in (ROOT / "gfnet_jax").rglob("*.py"):
    name = path.parent.name if path.stem == "__init__" else path.stem
    assert name == "__main__" or name in re.findall(r"\w+", tree), f"{path} is not in the tree"


def test_configs_import_only_ml_collections_and_each_other():
  for path in (ROOT / "configs").glob("*.py"):
    for imported in imports(syntax_tree(path)):
      assert imported.split(".")[0] in ("ml_collections", "configs"), f"{path} imports {imported}"


def test_no_module_and_no_function_is_too_long():
  for path in (*ROOT.glob("*.py"), *(ROOT / "gfnet_jax").rglob("*.py")):
    text = path.read_text()
    assert text.count("\n") <= MODULE_LINES, path
    for node in ast.walk(syntax_tree(path)):
      if isinstance(node, ast.FunctionDef):
        length = node.end_lineno - node.lineno + 1
        assert length <= FUNCTION_LINES, f"{path}: {node.name} has {length} lines"


@pytest.mark.parametrize(
  "arguments",
  [
    ("train.py", "--help"),
    ("train.py", "--config.learning_rte=1"),
    ("train.py", "--wrkdir=x"),
    ("eval.py", "--help"),
    ("eval.py", "--checkpont", "x"),
    ("convert_torch_weights.py", "--help"),
    ("tools/accelerator.py", "--help"),
    ("tools/predict.py", "--help"),
    ("tools/prepare_tfds.py", "--help"),
    ("-m", "gfnet_jax", "--help"),
    ("-m", "gfnet_jax", "trian"),
    ("-m", "gfnet_jax", "eval", "--help"),
    ("-m", "gfnet_jax", "export", "--help"),
    ("-m", "gfnet_jax", "models"),
    ("tools/compare_mixers.py", "--help"),
    ("tools/compile_ahead.py", "--help"),
    ("tools/plot.py", "--help"),
    ("tools/resize_rules.py", "--help"),
    ("tools/robustness.py", "--help"),
    ("tools/domains.py", "--help"),
    ("tools/visualize_filters.py", "--help"),
    ("tools/compile_ahead.py", "--topolgy=v5e:2x4"),
  ],
)
def test_help_and_mistyped_flags_need_neither_jax_nor_numpy(arguments):
  result = subprocess.run(
    [sys.executable, "-X", "importtime", *arguments], cwd=ROOT, capture_output=True, text=True
  )
  assert result.returncode == (0 if {"--help", "models"} & {*arguments} else 2)
  imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
  assert "gfnet_jax.command_line" in imported
  slow = {"jax", "flax", "numpy", "grain", "tensorflow_datasets", "orbax", "PIL", "torch"}
  assert not imported & slow


def test_worker_processes_of_the_data_need_neither_jax_nor_grain():
  code = """if True:
    import sys
    from gfnet_jax.data import samples, workers
    from gfnet_jax.data.segmentation import samples
    from gfnet_jax.data.sources import digits, folder, masks, photos, shapes, tfds
    assert not {"jax", "flax", "grain", "orbax"} & sys.modules.keys()
    """
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_public_name_is_there_and_only_imported_on_use():
  code = """if True:
    import sys
    import gfnet_jax
    assert not {"jax", "flax", "numpy"} & sys.modules.keys()
    assert set(gfnet_jax.__all__) <= set(dir(gfnet_jax))
    for name in gfnet_jax.__all__:
      assert getattr(gfnet_jax, name).__name__ == name
    try:
      gfnet_jax.creat_model
    except AttributeError as error:
      assert "creat_model" in str(error)
    else:
      raise AssertionError
    """
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_type_checkers_see_the_names_that_are_there_at_run_time():
  tree = ast.parse((ROOT / "gfnet_jax/__init__.py").read_text())
  seen = {
    alias.asname: f"{node.module}"
    for block in tree.body
    if isinstance(block, ast.If)
    for node in block.body
    for alias in node.names
  }
  import gfnet_jax

  assert seen == {name: f"gfnet_jax.{module}" for name, module in gfnet_jax._MODULES.items()}
  assert (Path(gfnet_jax.__file__).parent / "py.typed").exists()
