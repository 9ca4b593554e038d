"""The recipes of docs/architecture.md, followed to the letter in a copy of the project."""

import functools
import io
import json
import re
import shutil
import signal
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from fork_server import Server
from helpers import HANGS, ROOT, compiled, read_lines, script_environment, wait_for_line
from PIL import Image

import gfnet_jax
from gfnet_jax.data.sources.tfds import TfdsSource
from gfnet_jax.inference.read_image import read_image

RECIPES = (ROOT / "docs/architecture.md").read_text().split("## Recipe: ")[1:]
SMALL = (
  "--config.num_epochs=4",
  "--config.eval_every_epochs=1",
  "--config.log_every_steps=1",
  "--config.optimizer.warmup_epochs=1",
  "--config.data.batch_size=320",
  "--config.model.embed_dim=8",
  "--config.model.depth=1",
  "--config.model.patch_size=4",
)


class Project:
  """A copy of the project to which a recipe is applied, block of code by block."""

  def __init__(self, scripts: Server, directory: Path, recipe: str):
    self.directory = directory
    self._start = functools.partial(scripts.start, cwd=directory, env=script_environment())
    for name in ("gfnet_jax", "configs"):
      ignored = shutil.ignore_patterns("__pycache__")
      shutil.copytree(ROOT / name, directory / name, ignore=ignored)
    for name in ("train.py", "eval.py", "convert_torch_weights.py"):
      shutil.copy(ROOT / name, directory / name)
    [section] = [section for section in RECIPES if section.startswith(recipe)]
    self._blocks = iter(re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL))

  def write(self, path: str) -> None:
    """Makes a file of the next block."""
    assert not (self.directory / path).exists()
    (self.directory / path).write_text(next(self._blocks))

  def insert(self, path: str, line: str, *, before: bool = False) -> None:
    """Puts the next block behind, or in front of, the only line that begins so."""
    file = self.directory / path
    lines = file.read_text().splitlines(keepends=True)
    [place] = [i for i, text in enumerate(lines) if text.startswith(line)]
    block = next(self._blocks) + ("\n\n" if before else "")
    lines.insert(place if before else place + 1, block)
    file.write_text("".join(lines))

  def assert_followed_to_the_end(self) -> None:
    assert next(self._blocks, None) is None

  def run(self, *arguments) -> str:
    """Runs a script to its end; returns what it printed."""
    with self._start(*arguments) as process:
      output, errors = process.communicate(timeout=HANGS)
    assert process.returncode == 0, errors
    return output

  def stop(self, *arguments, workdir: Path) -> None:
    """Runs a training up to its first evaluation, and stops it there by a signal."""
    with self._start(*arguments) as process:
      wait_for_line(process, "epoch")
      process.send_signal(signal.SIGTERM)
      _, errors = process.communicate(timeout=HANGS)
      assert process.returncode == 0, errors
    lines = read_lines(workdir / "metrics.jsonl")
    assert lines[-1]["epoch"] < 3, "stopped before the end"


def evaluation(workdir: Path) -> dict:
  return [line for line in read_lines(workdir / "metrics.jsonl") if "eval_top1" in line][-1]


def test_a_token_mixer(tmp_path, scripts):
  project = Project(scripts, tmp_path / "project", "a token mixer")
  mixers = "gfnet_jax/models/mixers.py"
  project.insert(mixers, "MIXERS", before=True)
  project.insert(mixers, "MIXERS")
  project.assert_followed_to_the_end()

  workdir, tuned = tmp_path / "run", tmp_path / "tuned"
  train = ("train.py", *SMALL, "--config.model.mixer=pooling", "--workdir")
  project.stop(*train, workdir, workdir=workdir)
  assert "resumed after" in project.run(*train, workdir)
  results = tmp_path / "results.json"
  project.run("eval.py", "--checkpoint", workdir, "--output", results)
  assert json.loads(results.read_text())["top1"] == evaluation(workdir)["eval_top1"]
  project.run(*train, tuned, "--config.num_epochs=2", f"--config.init_checkpoint={workdir}")
  fresh, fine_tuned = (read_lines(path / "metrics.jsonl")[0] for path in (workdir, tuned))
  assert fine_tuned["train_loss"] < fresh["train_loss"] - 0.001
  with pytest.raises(AssertionError, match=r"error: .*pooling"):
    project.run("convert_torch_weights.py", "--to-torch", workdir, tmp_path / "weights.safetensors")


def test_a_data_set_with_an_augmentation(tmp_path, scripts):
  project = Project(scripts, tmp_path / "project", "a data set")
  project.write("gfnet_jax/data/sources/npz.py")
  project.insert("gfnet_jax/data/sources/open.py", "SOURCES")
  augmentations = "gfnet_jax/data/augmentations.py"
  project.insert(augmentations, "AUGMENTATIONS", before=True)
  project.insert(augmentations, "AUGMENTATIONS")
  project.insert(augmentations, "from PIL import")
  project.write("configs/npz.py")
  project.assert_followed_to_the_end()

  rng, data, other = np.random.default_rng(0), tmp_path / "data", tmp_path / "other"
  for directory, split, count in ((data, "train", 320), (data, "test", 30), (other, "test", 12)):
    directory.mkdir(exist_ok=True)
    labels = np.arange(count) % 3
    images = rng.integers(0, 256, (count, 72, 80, 3), np.uint8)
    images[np.arange(count), :, :, labels] //= 8
    names = ["cyan", "pink", "gold"]
    np.savez(directory / f"{split}.npz", images=images, labels=labels, names=names)
  small = ("--config.num_epochs=4", "--config.eval_every_epochs=1", "--config.log_every_steps=1")
  train = ("train.py", "--config", "configs/npz.py", f"--config.data.name={data}", *small)
  train = (*train, "--config.model.embed_dim=8", "--config.model.depth=1")
  train = (*train, "--config.optimizer.warmup_epochs=1", "--workdir")
  workdir, tuned = tmp_path / "run", tmp_path / "tuned"
  project.stop(*train, workdir, workdir=workdir)
  assert "resumed after" in project.run(*train, workdir)
  assert evaluation(workdir)["eval_images"] == 30
  results = tmp_path / "results.json"
  project.run("eval.py", "--checkpoint", workdir, "--output", results)
  assert json.loads(results.read_text())["top1"] == evaluation(workdir)["eval_top1"]
  project.run("eval.py", "--checkpoint", workdir, "--data", other, "--output", results)
  assert json.loads(results.read_text())["images"] == 12
  workers = "--config.data.reading.workers=2"  # augmentations travel to other processes
  project.run(
    *train, tuned, "--config.num_epochs=2", workers, f"--config.init_checkpoint={workdir}"
  )
  fresh, fine_tuned = (read_lines(path / "metrics.jsonl")[0] for path in (workdir, tuned))
  assert fine_tuned["train_loss"] < fresh["train_loss"] - 0.001


def margin(workdir: Path, ema: bool) -> float:
  """What the recipe's metric of evaluation is, computed here."""
  source = TfdsSource("digits", "test")
  records = [source[i] for i in range(len(source))]
  images = [read_image(Image.open(io.BytesIO(record.image)), (8, 8)) for record in records]
  model = gfnet_jax.load_model(workdir, ema=ema).model
  logits = np.asarray(compiled(model)(gfnet_jax.normalize(jnp.asarray(np.stack(images)))))
  return float(np.mean(logits.max(-1) - logits.mean(-1)))


def test_a_metric_and_a_thing_done_every_n_steps(tmp_path, scripts):
  """In a run that began without them, at the commit d75db2a."""
  project = Project(scripts, tmp_path / "project", "a metric")
  for path, last in (("training", '  "gradient_norm"'), ("inference", '  "loss": Metric(loss')):
    file = f"gfnet_jax/{path}/metrics.py"
    project.insert(file, "METRICS", before=True)
    project.insert(file, last)
  project.insert("configs/default.py", "  config.log_every_steps")
  project.insert("gfnet_jax/training/config_rules.py", '  "log_every_steps"')
  project.write("gfnet_jax/training/filter_image.py")
  loop = "gfnet_jax/training/loop.py"
  project.insert(loop, "  saving = Every(")
  project.insert(loop, "          state = log(run")
  project.insert(loop, "from gfnet_jax.training.console import")
  project.assert_followed_to_the_end()

  workdir, tuned = tmp_path / "run", tmp_path / "tuned"
  with zipfile.ZipFile(ROOT / "tests/golden/run_of_d75db2a.zip") as archive:
    archive.extractall(workdir)
  config = json.loads((workdir / "config.json").read_text())
  train = (
    *("train.py", "--config.filter_image_every_steps=2"),
    *(f"--config.{name}={config[name]}" for name in ("num_epochs", "eval_every_epochs")),
    *(f"--config.{name}={config[name]}" for name in ("log_every_steps", "ema_decay")),
    *(f"--config.model.{name}={config['model'][name]}" for name in ("embed_dim", "depth")),
    *(f"--config.augment.{name}={config['augment'][name]}" for name in ("auto_augment", "padding")),
    f"--config.model.patch_size={config['model']['patch_size']}",
    f"--config.data.batch_size={config['data']['batch_size']}",
    f"--config.optimizer.warmup_epochs={config['optimizer']['warmup_epochs']}",
    *("--workdir", workdir),
  )
  printed = project.run(*train)
  assert "resumed after 5" in printed
  assert printed.count("warning: this run began") == 2, printed
  assert "warning: this run began without the metric confidence" in printed
  assert "it continues with filter_image_every_steps=2" in printed
  lines = read_lines(workdir / "metrics.jsonl")
  assert [line["step"] for line in lines] == [4, 8, 9, 9]
  assert "train_confidence" not in lines[0]
  assert 0.1 <= lines[1]["train_confidence"] <= 1
  assert lines[-1]["eval_margin"] == pytest.approx(margin(workdir, ema=False), rel=1e-4)
  assert lines[-1]["eval_ema_margin"] == pytest.approx(margin(workdir, ema=True), rel=1e-4)
  assert re.search(r"loss \d+\.\d+   margin \d+\.\d+   360 images", printed)
  images = sorted((workdir / "filters").iterdir())
  assert [path.name for path in images] == ["00000006.png", "00000008.png"]
  with Image.open(images[0]) as image:
    assert image.size == (2, 2)
  results = tmp_path / "results.json"
  assert "margin" in project.run("eval.py", "--checkpoint", workdir, "--output", results)
  assert json.loads(results.read_text())["margin"] == pytest.approx(lines[-1]["eval_margin"])
  project.run(*train[:-1], tuned, f"--config.init_checkpoint={workdir}")
  assert evaluation(tuned)["eval_margin"] > lines[-1]["eval_margin"]
