"""tools/compare_mixers.py: what is run, continued and refused; its table and its plot."""

import functools
import importlib.util
import json
import os
import signal
from types import SimpleNamespace

import pytest
from flax import nnx
from helpers import HANGS, script_environment

import gfnet_jax
from gfnet_jax.config_files import read_config
from gfnet_jax.models.mixers import MIXERS
from gfnet_jax.models.variants import create_model

TINY = ("--config.model.embed_dim=8", "--config.model.depth=1", "--config.model.patch_size=4")


@pytest.fixture
def compare(in_process, monkeypatch, tmp_path):
  """compare(*arguments) -> (exit code, standard output, standard error)."""
  monkeypatch.syspath_prepend("tools")
  arguments = ("--mixers", "conv3", "fnet", "--seeds", 2, "--output", tmp_path / "out", *TINY)
  return functools.partial(in_process, "tools/compare_mixers.py", *arguments)


@pytest.fixture
def trained(monkeypatch):
  """The runs (mixer, seed) that were asked for; nothing is trained."""
  asked = []

  def train(config, workdir):
    print("printed by a run")
    assert config.eval_every_epochs == config.num_epochs
    asked.append((config.model.mixer, config.seed))
    workdir.mkdir(parents=True, exist_ok=True)
    top1 = 90.0 + 2 * config.seed - 20 * (config.model.mixer == "fnet")
    return {"top1": top1, "top5": 99.0, "loss": 0.5, "images": 360, "images_per_second": 1.0}

  def load_model(workdir):
    config = read_config("configs/digits.py", list(TINY)).model.to_dict()
    settings = {name: value for name, value in config.items() if value is not None}
    settings["mixer"] = workdir.parent.name
    return SimpleNamespace(model=nnx.eval_shape(lambda: create_model(**settings)))

  monkeypatch.setattr(gfnet_jax, "train", train, raising=False)
  monkeypatch.setattr(gfnet_jax, "load_model", load_model, raising=False)
  return asked


def test_the_table_has_mean_and_deviation_of_the_seeds(compare, trained, tmp_path):
  figure = tmp_path / "plots" / "mixers.svg"
  flags = ("--figure", figure) if importlib.util.find_spec("matplotlib") else ()
  code, output, error = compare(*flags)
  assert code == 0
  assert trained == [("conv3", 0), ("fnet", 0), ("conv3", 1), ("fnet", 1)]
  told = [f"run {i} of 4: mixer {name}, seed {seed}" for i, (name, seed) in enumerate(trained, 1)]
  assert error.splitlines() == told
  header, _, first, second = output.splitlines()
  assert header.startswith("| mixer | parameters | top-1, mean | standard deviation |")
  # 91 +- 1; the sum of squares over one degree of freedom.
  assert first.startswith("| `conv3` | ")
  assert first.endswith(" | 91.00 | 1.41 | 90.00, 92.00 | 0.500 |")
  assert second.endswith(" | 71.00 | 1.41 | 70.00, 72.00 | 0.500 |")
  parameters = [int(line.split("|")[2].replace(",", "")) for line in (first, second)]
  assert parameters[0] - parameters[1] == 9 * 8 + 8
  assert not flags or figure.read_text().startswith("<?xml")
  assert "printed by a run" in (tmp_path / "out/fnet/seed-1/log.txt").read_text()
  results = json.loads((tmp_path / "out/results.json").read_text())
  assert results["machine"]["versions"]["jax"]
  assert len(results["runs"]) == 4


def test_a_plot_of_another_kind_is_refused_before_the_work(compare, trained, tmp_path):
  code, output, error = compare("--figure", tmp_path / "mixers.jpg")
  assert (code, output, trained) == (2, "", [])
  assert error.startswith(
    f"error: the picture is {tmp_path}/mixers.jpg, expected a name that ends "
  )
  assert error.count("\n") == 1


def test_it_continues_where_it_was(compare, trained, monkeypatch):
  train, left = gfnet_jax.train, [1]

  def interrupted(config, workdir):
    if not left:
      return None  # as after a signal
    left.pop()
    return train(config, workdir)

  monkeypatch.setattr(gfnet_jax, "train", interrupted)
  code, output, _ = compare()
  assert (code, output) == (
    0,
    "Stopped by a signal with everything saved; the same command continues from here\n",
  )
  monkeypatch.setattr(gfnet_jax, "train", train)
  assert compare()[0] == 0
  assert trained == [("conv3", 0), ("fnet", 0), ("conv3", 1), ("fnet", 1)]
  assert compare("--seeds", 1)[0] == 0
  assert len(trained) == 4, "nothing is repeated"
  code, output, error = compare("--config.model.depth=2")
  assert (code, output) == (2, "")
  assert "results.json holds runs with other settings; repeat the command that made it" in error
  assert error.count("\n") == 1


def test_mistakes_are_told_in_one_line(compare, trained, tmp_path):
  for arguments, message in (
    (("--mixers", "con3"), "unknown mixer 'con3', expected one of global-filter"),
    (("--seeds", 0), "--seeds must be positive"),
    (("--config.model.deph=1",), "did you mean model.depth?"),
  ):
    code, output, error = compare(*arguments)
    assert (code, output) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
  (tmp_path / "out").mkdir()
  (tmp_path / "out/results.json").write_text("{")
  assert "results.json cannot be read" in compare()[2]
  assert trained == []


def test_the_config_of_the_ablation_takes_any_mixer():
  for mixer in MIXERS:
    config = read_config(f"configs/ablation.py:{mixer}", [])
    assert (config.name, config.model.mixer) == (f"ablation-{mixer}", mixer)
    assert (config.model.name, config.model.image_size) == ("gfnet-xs", 224)


@pytest.mark.slow
def test_a_killed_comparison_continues_to_the_same_end(script, scripts, tmp_path):
  def arguments(name):
    options = ("--mixers", "identity", "conv3", "--seeds", 1, "--output", tmp_path / name)
    short = ("--config.num_epochs=4", "--config.data.batch_size=320")
    return ("tools/compare_mixers.py", *map(str, options), *TINY, *short)

  whole = script(*arguments("whole"))
  assert whole.returncode == 0, whole.stderr
  log = tmp_path / "killed/conv3/seed-0/log.txt"
  with scripts.start(*arguments("killed"), env=script_environment()) as process:
    while process.poll() is None and not (log.exists() and "Steps:" in log.read_text()):
      os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=HANGS)
  again = script(*arguments("killed"))
  assert again.returncode == 0, again.stderr
  assert again.stdout == whole.stdout
