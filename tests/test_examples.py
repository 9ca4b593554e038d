"""The notebooks of examples/, and how the project is cited."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import HANGS, ROOT

import gfnet_jax

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def code_cells(path: Path) -> list[dict]:
  return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def code(path: Path) -> str:
  return "\n\n".join("".join(cell["source"]) for cell in code_cells(path))


def test_there_are_notebooks():
  assert {path.stem for path in NOTEBOOKS} >= {"filter_layer", "photos", "predict"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_show_what_they_printed(path):
  cells = code_cells(path)
  assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
  kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
  assert "stream" in kinds and "error" not in kinds
  shown = [output.get("data", {}) for cell in cells for output in cell["outputs"]]
  assert any("image/png" in data for data in shown)
  texts = ["".join(output.get("text", "")) for cell in cells for output in cell["outputs"]]
  assert not re.search(r"(?<![\w.])/(tmp|home|root|work)/", "".join(texts))
  for name in re.findall(r"\bgfnet_jax\.(\w+)", path.read_text()):
    assert name in dir(gfnet_jax)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_of_notebooks_runs(path, tmp_path):
  pytest.importorskip("matplotlib")
  environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
  environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
  subprocess.run(
    [sys.executable, "-W", "ignore", "-c", code(path)],
    cwd=tmp_path,
    env=environment,
    check=True,
    timeout=HANGS,
  )


def test_the_citation_is_of_this_version():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert citation["cff-version"] == "1.2.0"
  assert {"message", "title", "authors"} <= citation.keys()  # that the format demands
  assert citation["version"] == gfnet_jax.__version__
  for paper in citation["references"]:
    names = [author["family-names"] for author in paper["authors"]]
    assert names == ["Rao", "Zhao", "Zhu", "Lu", "Zhou"]
  assert [paper["year"] for paper in citation["references"]] == [2021, 2023]
