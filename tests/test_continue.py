"""Continuing a run: on the same data wherever they are, and on no others."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import read_lines
from PIL import Image

from configs.digits import get_config
from gfnet_jax.checkpoints.finding import list_steps
from gfnet_jax.errors import UserError
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.models.functional import split
from gfnet_jax.training import loop, resume
from gfnet_jax.training.inputs import open_inputs
from gfnet_jax.training.resume import Progress, restore_run


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path) -> Path:
  """24 and 9 images of three classes, as train and val."""
  rng = np.random.default_rng(0)
  for name, count in (("train", 24), ("val", 9)):
    for i in range(count):
      path = tmp_path / "images" / name / "abc"[i % 3] / f"{i:02d}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
  return tmp_path / "images"


def config_of(root: Path):
  config = get_config()
  config.update(num_epochs=4.0, eval_every_epochs=2.0, log_every_steps=1)
  config.model.update(num_classes=0, embed_dim=8, depth=1, patch_size=4)
  config.optimizer.update(warmup_epochs=1.0, schedule="cosine")
  config.data.update(source="folder", name=str(root), train_split="train", eval_split="val")
  config.data.update(batch_size=8, eval_batch_size=8)
  return config


def describe(config) -> dict:
  """What a checkpoint of a run says of config and data."""
  inputs = open_inputs(config)
  return {
    "class_names": inputs.train_source.class_names,
    "config": config.to_dict(),
    "data": inputs.fingerprints,
  }


@pytest.fixture
def continues(monkeypatch, capsys):
  """continues(before, now) tries to continue a run that a checkpoint of step 6 describes."""

  def continues(before: dict, now: dict) -> None:
    capsys.readouterr()  # where the listings came from
    metadata = json.loads(json.dumps(before)) | {"step": 6} | Progress(6).to_metadata()
    monkeypatch.setattr(resume, "newest_whole", lambda directory: 6)
    monkeypatch.setattr(resume, "read_metadata", lambda directory, step: metadata)
    monkeypatch.setattr(resume, "_restore_state", lambda *_: "state")
    checkpoints = SimpleNamespace(directory=Path("runs/x/checkpoints"))
    assert restore_run(checkpoints, now, None, None) == ("state", Progress(6))

  return continues


def test_nothing_has_changed(root, continues, capsys):
  continues(describe(config_of(root)), describe(config_of(root)))
  assert capsys.readouterr().out == ""


@pytest.mark.parametrize("how", ["moved", "copied", "linked", "relative"])
def test_the_same_data_at_another_path(root, continues, tmp_path, monkeypatch, how):
  before = describe(config_of(root))
  other = tmp_path / "other"
  if how == "moved":
    root.rename(other)
  elif how == "copied":
    shutil.copytree(root, other)
  elif how == "linked":
    other.symlink_to(root)
  else:
    monkeypatch.chdir(root.parent)
    other = Path(root.name)
  continues(before, describe(config_of(other)))


def rename_class(root):
  for name in ("train", "val"):
    (root / name / "a").rename(root / name / "z")


def add_class(root):
  for name in ("train", "val"):
    shutil.copytree(root / name / "a", root / name / "aa")


def add_images(root):
  for i in range(10):
    shutil.copy(root / "train/a/00.png", root / f"train/a/new {i}.png")


def swap_classes(root):
  (root / "train/a").rename(root / "train/swap")
  (root / "train/b").rename(root / "train/a")
  (root / "train/swap").rename(root / "train/b")


def rename_image(root):
  (root / "train/b/01.png").rename(root / "train/b/99.png")


def remove_image(root):
  (root / "train/b/01.png").unlink()


def rename_image_and_class(root):
  rename_class(root)
  remove_image(root)


SHORTER = "23 images instead of 24; set another --workdir, or the data back to continue"
CHANGES = {
  rename_class: "its classes are with z and without a; 24 images as before, but under other names",
  add_class: "its classes are with aa; 32 images instead of 24; set",
  add_images: "34 images instead of 24",
  swap_classes: "24 images as before, but under other names or in another order",
  rename_image: "24 images as before, but under other names or in another order",
  remove_image: SHORTER,
  rename_image_and_class: "its classes are with z and without a; 23 images instead of 24",
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_training_data_are_refused(root, continues, capsys, change):
  before = describe(config_of(root))
  change(root)
  with pytest.raises(UserError, match=rf"^runs/x holds a run .*on other.*: {CHANGES[change]}"):
    continues(before, describe(config_of(root)))
  assert capsys.readouterr().out == ""


def test_all_that_differs_is_named_at_once(root, continues, tmp_path):
  """Not the path of the data, which may be another one."""
  before = describe(config_of(root))
  root.rename(tmp_path / "other")
  remove_image(tmp_path / "other")
  config = config_of(tmp_path / "other")
  config.update(seed=7, ema_decay=0.5)
  with pytest.raises(UserError) as error:
    continues(before, describe(config))
  assert str(error.value) == (
    "runs/x holds a run with ema_decay=0.0, this one has 0.5; with seed=0, this one has 7; on "
    "other training data: 23 images instead of 24; set another --workdir, or the fields and the "
    "data back to continue"
  )


def test_other_images_of_the_evaluation_are_a_warning(root, continues, capsys):
  """A damaged one, which ended the run, may be removed to continue."""
  before = describe(config_of(root))
  (root / "val/a/00.png").unlink()
  continues(before, describe(config_of(root)))
  assert capsys.readouterr().out == (
    "warning: evaluated on 8 images instead of 9; compare no results across this point\n"
  )


def test_an_older_run_is_compared_by_its_classes(root, continues, capsys):
  before = describe(config_of(root))
  del before["data"]
  continues(before, describe(config_of(root)))
  assert capsys.readouterr().out.count("warning: an older version began this run") == 1
  rename_class(root)
  with pytest.raises(UserError, match="its classes are with z and without a; set another"):
    continues(before, describe(config_of(root)))


def test_data_without_names_stay_where_they_are(root, continues, tmp_path):
  """A source of one's own that does not say what it holds may hold anything elsewhere."""
  before, now = describe(config_of(root)), describe(config_of(root))
  for description in (before, now):
    description["data"] = {name: {"images": 24, "names": None} for name in ("train", "eval")}
  continues(before, now)
  now["config"]["data"]["name"] = "elsewhere"
  with pytest.raises(UserError, match=rf"a run with data.name={root}, this one has elsewhere; set"):
    continues(before, now)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("name", "other"),
    ("log_every_steps", 3),
    ("eval_every_epochs", 0.5),
    ("data.data_dir", "elsewhere"),
  ],
)
def test_what_changes_no_result_may_change(root, continues, capsys, field, value):
  config = config_of(root)
  config.update_from_flattened_dict({field: value})
  continues(describe(config_of(root)), describe(config))
  assert capsys.readouterr().out == ""


def test_a_run_may_become_longer_but_not_shorter(root, continues, capsys):
  longer = config_of(root)
  longer.num_epochs = 9.0
  continues(describe(config_of(root)), describe(longer))
  printed = capsys.readouterr().out
  assert printed.startswith("num_epochs is 9.0 instead of 4.0: from here on the learning rate is")
  assert printed.count("\n") == 1
  with pytest.raises(UserError, match=r"a run with num_epochs=9\.0, this one has 4\.0; set anoth"):
    continues(describe(longer), describe(config_of(root)))


# Whole runs.


@pytest.fixture
def _standard_promotion():
  with jax.numpy_dtype_promotion("standard"):  # optax multiplies integers and floats
    yield


def arrays(workdir: Path) -> dict[str, np.ndarray]:
  _, params = split(load_model(workdir).model)
  return {name: np.asarray(value) for name, value in params.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("_standard_promotion")
def test_a_run_continues_with_moved_data_other_lines_and_more_epochs(root, tmp_path, capsys):
  workdir, other = tmp_path / "run", tmp_path / "other"
  config = config_of(root)
  loop.train(config, workdir)
  assert list_steps(workdir / "checkpoints")[-1] == 12
  before = (workdir / "metrics.jsonl").read_bytes()
  root.rename(other)
  config = config_of(other)
  config.update(name="longer", log_every_steps=2, eval_every_epochs=3.0, num_epochs=6.0)
  loop.train(config, workdir)
  assert "num_epochs is 6.0 instead of 4.0" in capsys.readouterr().out
  assert (workdir / "metrics.jsonl").read_bytes().startswith(before)
  lines = read_lines(workdir / "metrics.jsonl")[len(before.splitlines()) :]
  assert [line["step"] for line in lines if "train_loss" in line] == [14, 16, 18]
  assert [line["step"] for line in lines if "eval_top1" in line] == [18]
  # The learning rate of a cosine of 18 steps, 3 of them of warm-up, at its second-last step.
  rate = 1e-5 + 0.5 * (config.optimizer.learning_rate - 1e-5) * (1 + np.cos(np.pi * 14 / 15))
  assert lines[-2]["learning_rate"] == pytest.approx(rate, rel=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("_standard_promotion")
def test_a_stopped_run_on_moved_data_ends_with_the_same_bits(root, tmp_path, monkeypatch):
  loop.train(config_of(root), tmp_path / "expected")
  with monkeypatch.context() as patch:
    patch.setattr(loop.Guards, "pulse", lambda self: self.watchdog.advance() or True)
    assert loop.train(config_of(root), tmp_path / "run") is None
  root.rename(tmp_path / "other")
  config = config_of(tmp_path / "other")
  config.name = "other"
  loop.train(config, tmp_path / "run")
  expected = arrays(tmp_path / "expected")
  for name, value in arrays(tmp_path / "run").items():
    np.testing.assert_array_equal(value, expected[name], err_msg=name)
  files = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("expected", "run")]
  assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.usefixtures("_standard_promotion")
def test_what_is_refused_leaves_no_trace(root, tmp_path):
  loop.train(config_of(root), tmp_path / "run")
  files = sorted(str(path) for path in (tmp_path / "run").rglob("*"))
  rename_class(root)
  with pytest.raises(UserError, match="its classes are with z and without a"):
    loop.train(config_of(root), tmp_path / "run")
  assert sorted(str(path) for path in (tmp_path / "run").rglob("*")) == files
  config = config_of(root)
  config.model.depth = 2
  config.init_checkpoint = str(tmp_path / "run")
  with pytest.raises(UserError, match=r"is not the network of config\.model"):
    loop.train(config, tmp_path / "tuned")
  assert not (tmp_path / "tuned").exists()
