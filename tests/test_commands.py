"""gfnet-jax: its commands, the ready-made configs, and what an installation holds."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers import ROOT

import gfnet_jax
from gfnet_jax import config_files
from gfnet_jax.__main__ import COMMANDS
from gfnet_jax.command_line import SCRIPTS, program, spell
from gfnet_jax.models.published import PUBLISHED
from gfnet_jax.training import loop

MAIN = "gfnet_jax/__main__.py"


@pytest.mark.parametrize(
  ("called", "command", "spelled"),
  [
    ("train.py", "eval", "python eval.py"),
    ("/elsewhere/tools/predict.py", "convert", "python convert_torch_weights.py"),
    ("train.py", "configs", "python -m gfnet_jax configs"),
    ("/site-packages/gfnet_jax/__main__.py", "eval", "python -m gfnet_jax eval"),
    ("/usr/bin/gfnet-jax", "eval", "gfnet-jax eval"),
    ("a_notebook.py", "prepare", "gfnet-jax prepare"),
  ],
)
def test_commands_are_spelled_as_they_were_called(monkeypatch, called, command, spelled):
  monkeypatch.setattr(sys, "argv", [called])
  assert spell(command) == spelled
  script = spelled.endswith(".py")
  assert program(command) == (spelled.removeprefix("python ") if script else spelled)


def test_help_has_a_line_and_an_example_for_every_command(in_process):
  code, output, _ = in_process(MAIN, "--help")
  assert code == 0
  for name in COMMANDS:
    assert re.search(rf"^  \w.*  python -m gfnet_jax {name}\b", output, re.MULTILINE), name
  modules = {path.stem for path in (ROOT / "gfnet_jax/commands").glob("*.py")} - {"__init__"}
  assert modules == set(COMMANDS) > set(SCRIPTS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_with_examples(in_process, name):
  code, output, _ = in_process(MAIN, name, "--help")
  assert code == 0
  assert output.startswith(f"usage: python -m gfnet_jax {name} ")
  assert f"\n  python -m gfnet_jax {name}" in output
  if name in SCRIPTS:
    code, output, _ = in_process(SCRIPTS[name], "--help")
    assert output.startswith(f"usage: {SCRIPTS[name]} ")
    assert f"\n  python {SCRIPTS[name]}" in output


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["trian"], r"unknown command 'trian', expected one of train, .*; did you mean train\?"),
    ([], r"required: command \(see python -m gfnet_jax --help\)"),
    (["eval", "--checkpont=x"], r"\(see python -m gfnet_jax eval --help\)"),
    (["configs", "digit"], r"unknown config 'digit', expected one of .*; did you mean digits\?"),
    (["models", "gfnet-ti"], "unrecognized arguments: gfnet-ti"),
    (["predict", "gfnet-xxs", "pyproject.toml"], r"no checkpoint in gfnet-xxs, .*mean gfnet-xs\?"),
    (["convert", "--to-torch", "a", "gs://b/a.pth"], r"gs://b/a\.pth is in a store; convert to"),
    (["eval", "--checkpoint", "a", "--report", "gs://b/a"], "--report: gs://b/a is in a store"),
    (["plot", "s3://b/a"], "s3://b/a is in a store, expected a name on a disk"),
    (["train", "--config", "imagnet"], r"config file imagnet not found; did you mean imagenet\?"),
  ],
)
def test_mistyped_commands_are_one_line(in_process, arguments, message):
  code, output, errors = in_process(MAIN, *arguments)
  assert (code, output) == (2, "")
  assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", errors), errors


def test_the_version(in_process):
  assert in_process(MAIN, "--version") == (0, f"gfnet-jax {gfnet_jax.__version__}\n", "")


def test_models_are_listed_with_what_is_published(in_process):
  code, output, _ = in_process(MAIN, "models")
  assert code == 0
  rows = {line.split()[0]: line.split()[1:] for line in output.splitlines()[1:]}
  assert list(rows) == list(PUBLISHED) == gfnet_jax.list_models()
  assert rows["gfnet-xs"] == ["15,985,768", "224x224", "78.6", "94.2", "gfnet-xs.pth"]


def test_configs_are_listed_and_shown(in_process):
  code, output, _ = in_process(MAIN, "configs")
  assert code == 0
  files = {path.stem: path for path in (ROOT / "configs").glob("*.py")}
  assert [line.split()[0] for line in output.splitlines()] == sorted(files)
  assert all(len(line.split()) > 3 for line in output.splitlines())
  for name, path in files.items():
    assert in_process(MAIN, "configs", name)[1] == path.read_text()


def test_configs_have_short_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "digits").mkdir()  # as a folder of images might be called
  assert gfnet_jax.load_config("digits") == gfnet_jax.load_config("configs/digits.py")
  assert gfnet_jax.load_config("imagenet:gfnet-s").model.name == "gfnet-s"
  (tmp_path / "digits.py").write_text("from configs import default as d\nget_config = d.get_config")
  assert gfnet_jax.load_config("digits.py").name == "default", "a file of one's own comes first"


def test_configs_import_ready_made_ones_and_those_beside_them(tmp_path, monkeypatch):
  configs = tmp_path / "configs"
  configs.mkdir()
  (configs / "base.py").write_text("from configs import default\nget = default.get_config\n")
  mine = "from configs import base\n\ndef get_config():\n  from configs import digits\n"
  mine += (
    "  config = base.get()\n  config.name = 'my ' + digits.get_config().name\n  return config\n"
  )
  (configs / "mine.py").write_text(mine)
  monkeypatch.chdir(tmp_path)
  before = {name: module for name, module in sys.modules.items() if name.startswith("configs")}
  assert gfnet_jax.load_config("configs/mine.py").name == "my digits"
  after = {name: module for name, module in sys.modules.items() if name.startswith("configs")}
  assert after == before, "modules of the program that have the same names stay"
  with pytest.raises(gfnet_jax.UserError, match=r"cannot import name 'base' from 'configs'"):
    (tmp_path / "mine.py").write_text(mine)
    gfnet_jax.load_config("mine.py")


def test_train_takes_names_files_and_configs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Path("mine.py").write_text("from configs import digits\nget_config = digits.get_config\n")
  checked = []

  def check(config):
    checked.append(config)
    raise gfnet_jax.UserError("enough")

  monkeypatch.setattr(loop, "check", check)
  expected = gfnet_jax.load_config("digits")
  for config in ("digits", Path("mine.py"), expected):
    with pytest.raises(gfnet_jax.UserError, match="enough"):
      gfnet_jax.train(config, "run")
  assert checked == 3 * [expected]
  with pytest.raises(
    gfnet_jax.UserError, match="config file digist not found; did you mean digits"
  ):
    gfnet_jax.train("digist", "run")
  assert not Path("run").exists()


def test_a_wheel_holds_every_package_and_the_configs():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
  folders = {path.parent for path in (ROOT / "gfnet_jax").rglob("*.py")}
  packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
  assert project["packages"] == sorted(packages | {"gfnet_jax.configs"})
  assert project["package-dir"] == {"gfnet_jax.configs": "configs"}
  files = [
    path
    for path in (ROOT / "gfnet_jax").rglob("*")
    if path.suffix not in (".py", ".pyc") and path.is_file()
  ]
  assert {"page.html", "py.typed"} < {path.name for path in files}
  for path in files:
    folder = next(parent for parent in path.parents if parent in folders)
    package = ".".join(folder.relative_to(ROOT).parts)
    patterns = project["package-data"].get(package, ())
    assert any(map(path.relative_to(folder).match, patterns)), path


def test_an_installed_copy_finds_the_configs(tmp_path):
  """As a wheel lays it out, from an empty directory."""
  site, empty = tmp_path / "site", tmp_path / "empty"
  ignored = shutil.ignore_patterns("__pycache__")
  shutil.copytree(ROOT / "gfnet_jax", site / "gfnet_jax", ignore=ignored)
  shutil.copytree(ROOT / "configs", site / "gfnet_jax/configs", ignore=ignored)
  empty.mkdir()
  (empty / "mine.py").write_text(
    "from configs import imagenet\n\ndef get_config():\n  return imagenet.get_config('gfnet-b')\n"
  )
  code = """if True:
    import gfnet_jax
    assert gfnet_jax.__file__.startswith({!r}), gfnet_jax.__file__
    for specifier in ("imagenet:gfnet-b", "configs/imagenet.py:gfnet-b", "mine.py"):
      assert gfnet_jax.load_config(specifier).model.name == "gfnet-b"
    """
  subprocess.run(
    [sys.executable, "-c", code.format(str(site))],
    cwd=empty,
    env=os.environ | {"PYTHONPATH": str(site)},
    check=True,
  )


def test_the_repository_has_the_configs_beside_the_package():
  assert config_files.CONFIGS == ROOT / "configs"
