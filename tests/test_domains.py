"""Domains: which images are read when, what is refused, the final test, and the table."""

import functools
import io
import json
import pickle
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from helpers import finish, wait_for_line
from PIL import Image

import gfnet_jax
from configs.domains import BENCHMARKS
from gfnet_jax.config_files import load_config, read_config
from gfnet_jax.data.decode import decode_image
from gfnet_jax.data.sources import contents, folder
from gfnet_jax.data.sources.digit_domains import DOMAINS
from gfnet_jax.data.sources.joined import Joined
from gfnet_jax.data.sources.open import open_source
from gfnet_jax.errors import UserError
from gfnet_jax.inference.evaluate import evaluate
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.training import final_report, final_test
from gfnet_jax.training.config_rules import check_config
from gfnet_jax.training.guards import Stopped

IMAGES = 20  # of a class of a domain
TINY = dict(name="gfnet-ti", image_size=8, patch_size=4, embed_dim=8, depth=1, num_classes=0)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write_domains(root: Path, domains=("art", "photo", "sketch"), classes=("cat", "dog")) -> Path:
  """Noisy images, each another one: cats are darker than dogs."""
  rng = np.random.default_rng(0)
  for domain in domains:
    for i, name in enumerate(classes):
      (root / domain / name).mkdir(parents=True)
      for k in range(IMAGES):
        pixels = rng.integers(0, 120, (8, 8, 3)) + 120 * i
        Image.fromarray(pixels.astype(np.uint8)).save(root / domain / name / f"{k:02d}.png")
  return root


def section(root, **changes) -> ml_collections.ConfigDict:
  data = dict(source="domains", name=str(root), held_out="sketch", domains=(), folders=())
  return ml_collections.ConfigDict(data | changes)


def names(source) -> list[str]:
  return [source[i].name for i in range(len(source))]


def test_the_splits_of_folders(tmp_path):
  data = section(write_domains(tmp_path))
  train, val, test = (open_source(data, split) for split in ("train", "val", "test"))
  assert train.class_names == val.class_names == test.class_names == ["cat", "dog"]
  assert train.parts == {"art": 36, "photo": 36}
  assert val.parts == {"art": 4, "photo": 4}
  assert test.parts == {"sketch": 40}
  assert {*names(train), *names(val)} == {
    str(path) for path in tmp_path.glob("*/*/*") if path.parts[-3] != "sketch"
  }
  assert not {*names(train)} & {*names(val)}
  assert names(test) == [str(path) for path in sorted(tmp_path.glob("sketch/*/*"))]
  assert [val[i].label for i in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]
  other = open_source(section(tmp_path, held_out="art"), "train")
  assert other.parts == {"photo": 36, "sketch": 36}


def test_parts_of_two_folders_each(tmp_path):
  for folder_name in ("full", "test"):
    write_domains(tmp_path / folder_name, ("SUN", "PASCAL"))
  for domain in ("SUN", "PASCAL"):
    (tmp_path / "set" / domain).mkdir(parents=True)
    for name in ("full", "test"):
      (tmp_path / name / domain).rename(tmp_path / "set" / domain / name)
  data = section(tmp_path / "set", held_out="SUN", folders=("full", "test"))
  assert open_source(data, "train").parts == {"PASCAL": 40}
  assert all("/PASCAL/test/" in name for name in names(open_source(data, "val")))
  assert open_source(data, "test").parts == {"SUN/full": 40, "SUN/test": 40}


def test_lists_choose_the_validation_images(tmp_path):
  write_domains(tmp_path)
  (tmp_path / "splits").mkdir()
  lists = {"train": ["cat/03.png 1", "dog/04.png 2", "cat/01.png 1"], "crossval": ["dog/00.png 2"]}
  for domain in ("art", "photo"):
    for kind, lines in lists.items():
      text = "".join(f"{domain}/{line}\n" for line in lines)
      (tmp_path / f"splits/{domain}_{kind}_kfold.txt").write_text(text)
  train, val = (open_source(section(tmp_path), split) for split in ("train", "val"))
  assert [name.removeprefix(f"{tmp_path}/") for name in names(train)][:3] == [
    *("art/cat/03.png", "art/dog/04.png", "art/cat/01.png")
  ]
  assert [train[i].label for i in range(3)] == [0, 1, 0]
  assert [name.removeprefix(f"{tmp_path}/") for name in names(val)] == [
    *("art/dog/00.png", "photo/dog/00.png")
  ]
  assert open_source(section(tmp_path), "test").parts == {"sketch": 40}
  (tmp_path / "splits/art_crossval_kfold.txt").rename(tmp_path / "crossval")
  with pytest.raises(UserError, match=r"one of the two lists of art, expected art_crossval_kfold"):
    open_source(section(tmp_path), "train")
  (tmp_path / "crossval").rename(tmp_path / "splits/art_crossval_kfold.txt")
  (tmp_path / "splits/art_train_kfold.txt").write_text("art/cat/99.png 1\n")
  with pytest.raises(UserError, match=r"art/cat/99\.png is in the list of art's images for train"):
    open_source(section(tmp_path), "train")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A whole run in which every image that is read is noted, and whether it was allowed."""
  root = write_domains(tmp_path_factory.mktemp("domains"))
  workdir = tmp_path_factory.mktemp("runs") / "run"
  seen = {"training": [], "testing": []}
  stage = ["training"]
  read_file, write_final_test = folder.read_file, final_test.write_final_test

  def noting(path):
    if stage[0] == "training" and "sketch" in Path(path).parts:
      raise AssertionError(f"{path} is read before the final test")
    seen[stage[0]].append(str(path))
    return read_file(path)

  def testing(run, guards):
    stage[0] = "testing"
    return write_final_test(run, guards)

  config = load_config("domains:folder")
  config.init_checkpoint, config.precision = "", "default"
  config.model.update(TINY)
  config.data.update(name=str(root), held_out="sketch", batch_size=8, eval_batch_size=8)
  config.data.reading.update(workers=0, threads=2)
  config.num_epochs, config.optimizer.warmup_epochs = 2.0, 1.0
  config.augment.auto_augment = ""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(workdir.parent / "cache"))
    for module in (folder, contents):
      patch.setattr(module, "read_file", noting)
    patch.setattr(final_report, "write_final_test", testing)
    with jax.numpy_dtype_promotion("standard"):  # Optax promotes
      results = gfnet_jax.train(config, workdir)
  return root, workdir, config, seen, results


def test_no_image_of_the_held_out_domain_is_read_before_the_final_test(run):
  root, _, _, seen, results = run
  assert {Path(path).parts[-3] for path in seen["training"]} == {"art", "photo"}
  assert sorted(seen["testing"]) == sorted(map(str, root.glob("sketch/*/*")))  # all, and once
  assert (results["images"], results["test_images"]) == (8, 2 * IMAGES)
  assert results["test_parts"]["sketch"]["top1"] == results["test_top1"]


def test_the_guard_would_notice(run, monkeypatch):
  """Opening the held-out domain as if it were trained on makes the noting reader fail."""
  root, *_ = run
  monkeypatch.setattr(folder, "read_file", lambda path: pytest.fail(f"{path} is read"))
  source = open_source(section(root, held_out="art"), "train")
  with pytest.raises(pytest.fail.Exception, match=r"photo/.* is read"):
    source[0]


def test_the_test_is_of_the_best_checkpoint_and_in_a_file(run, in_process):
  _, workdir, _, _, results = run
  saved = load_model(workdir, "best")
  assert results["test_step"] == saved.step
  again = evaluate(saved, split="test")
  assert {f"test_{name}": again[name] for name in ("top1", "loss", "images")}.items() <= (
    results.items()
  )
  assert json.loads((workdir / "test.json").read_text()) == {
    name: value for name, value in results.items() if name.startswith("test_")
  }
  code, output, _ = in_process("eval.py", "--checkpoint", workdir, "--split", "val")
  assert code == 0
  assert [line.split()[0] for line in output.splitlines()[-3:-1]] == ["art", "photo"]


def test_a_run_that_is_done_tests_again_and_a_signal_waits_for_the_same_command(run, monkeypatch):
  _, workdir, config, _, results = run
  path = workdir / "test.json"
  path.unlink()

  def stopped(*arguments, **options):
    raise Stopped

  with monkeypatch.context() as patch:
    patch.setattr(final_test, "evaluate", stopped)
    assert gfnet_jax.train(config, workdir) is None
  assert not path.exists()
  again = gfnet_jax.train(config, workdir)
  assert {k: v for k, v in again.items() if k.startswith("test_")} == {
    k: v for k, v in results.items() if k.startswith("test_")
  }
  assert path.exists()


def test_a_wrong_test_split_is_refused_before_the_training(run):
  _, workdir, config, _, _ = run
  config = config.copy_and_resolve_references()
  config.data.test_split = "tset"
  with pytest.raises(UserError, match="the split is 'tset', expected one of train, val, test"):
    gfnet_jax.train(config, workdir.parent / "other")
  assert not (workdir.parent / "other").exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(held_out=""), r"data\.held_out is empty, expected one of art, photo, sketch; set it"),
    (dict(held_out="skech"), r"unknown domain in data\.held_out 'skech', .*did you mean sketch\?"),
    (
      dict(domains=("art", "cartoon"), held_out="art"),
      r"has no domain cartoon, expected art, cartoon; found art, photo, sketch; set data\.name",
    ),
    (dict(domains=("art",), held_out="art"), "expected a folder for each of at least two domains"),
    (dict(folders=("train",)), r"data\.folders is \('train',\), expected two"),
    (dict(folders=("train", "val")), "directory .*art/train cannot be read"),
    (dict(name="/nowhere"), r"directory /nowhere cannot be read \(No such file or directory\)"),
    (dict(name=""), r"data\.name is empty"),
  ],
)
def test_what_is_refused(run, changes, message):
  with pytest.raises(UserError, match=message):
    open_source(section(run[0], **changes), "train")


def test_other_splits_and_other_classes_are_refused(tmp_path):
  write_domains(tmp_path)
  with pytest.raises(
    UserError, match="the split is 'validation', expected one of train, val, test"
  ):
    open_source(section(tmp_path), "validation")
  (tmp_path / "sketch/dog").rename(tmp_path / "sketch/wolf")
  with pytest.raises(
    UserError, match=r"the classes of .*sketch are not those .*'dog' is a class of"
  ):
    open_source(section(tmp_path), "train")


def test_the_digits_are_four_domains_without_a_scan_in_common():
  data = functools.partial(section, "digits")
  tests = {domain: open_source(data(held_out=domain), "test") for domain in DOMAINS}
  assert [len(source) for source in tests.values()] == [450, 449, 449, 449]
  train, val = (open_source(data(held_out="noised"), split) for split in ("train", "val"))
  assert train.parts == {"rotated": 405, "inverted": 405, "blurred": 405}
  assert val.parts == {"rotated": 45, "inverted": 44, "blurred": 44}
  scans = [
    record_name.rpartition(" ")[0] for source in tests.values() for record_name in names(source)
  ]
  assert len(set(scans)) == 1797
  digits = open_source(ml_collections.ConfigDict(dict(source="tfds", name="digits")), "train+test")
  first = {domain: tests[domain][0] for domain in DOMAINS}
  scan = np.asarray(decode_image(digits[1].image).convert("L"))
  inverted = np.asarray(Image.open(io.BytesIO(first["inverted"].image)))
  np.testing.assert_array_equal(inverted, 255 - scan)
  assert [record.label for record in first.values()] == [digits[i].label for i in range(4)]
  assert pickle.loads(pickle.dumps(tests["noised"]))[0] == first["noised"]  # the same noise again
  noise = np.asarray(Image.open(io.BytesIO(first["noised"].image)), int)
  scan = np.asarray(decode_image(digits[3].image).convert("L"), int)
  assert 30 < np.abs(noise - scan)[scan == 0].mean() * 2 < 80  # half of it is clipped at 0


def test_joined_sources_and_their_names():
  class Letters:
    class_names = ("a",)

    def __init__(self, text):
      self.text = text

    def __len__(self):
      return len(self.text)

    def __getitem__(self, index):
      return self.text[index]

    def record_names(self):
      return [letter.encode() for letter in self.text]

  joined = Joined({"x": Letters("ab"), "y": Letters("c"), "z": Letters("def")})
  assert "".join(joined[i] for i in range(len(joined))) == "abcdef"
  assert joined.parts == {"x": 2, "y": 1, "z": 3}
  assert list(joined.record_names()) == [b"x", b"a", b"b", b"y", b"c", b"z", b"d", b"e", b"f"]


@pytest.mark.parametrize("benchmark", [*BENCHMARKS, "digits"])
def test_the_configs_are_whole(benchmark):
  config = load_config(f"domains:{benchmark}")
  check_config(config)
  assert (config.data.source, config.data.test_split) == ("domains", "test")
  assert config.data.held_out == ("rotated" if benchmark == "digits" else "")


def test_an_unknown_benchmark_is_named():
  with pytest.raises(UserError, match="unknown benchmark 'pac', expected one of pacs, vlcs, "):
    read_config("configs/domains.py:pac", [])


@pytest.fixture
def trained(monkeypatch):
  """The runs (domain, seed) that were asked for; nothing is trained."""
  asked = []

  def train(config, workdir):
    asked.append((config.data.held_out, config.seed, workdir.parent.name))
    return {"top1": 99.0, "test_top1": 10.0 * len(asked), "images_per_second": 1.0}

  monkeypatch.setattr(gfnet_jax, "train", train, raising=False)
  monkeypatch.syspath_prepend("tools")
  return asked


def test_the_table_of_all_domains(in_process, trained, tmp_path):
  command = ("tools/domains.py", "--seeds", 2, "--output", tmp_path / "out")
  code, output, _ = in_process(*command, "--domains", "blurred", "noised")
  assert code == 0
  runs = [("blurred", 0), ("noised", 0), ("blurred", 1), ("noised", 1)]
  assert trained == [(domain, seed, domain) for domain, seed in runs]
  assert output.splitlines() == [
    "| held out | top-1, mean | standard deviation | every seed |",
    "|---|---|---|---|",
    "| blurred | 20.00 | 14.14 | 10.00, 30.00 |",
    "| noised | 30.00 | 14.14 | 20.00, 40.00 |",
    "| **mean** | 25.00 | 14.14 | 15.00, 35.00 |",
  ]
  again = in_process(*command, "--domains", "blurred")
  assert again[1].splitlines()[-1] == "| blurred | 20.00 | 14.14 | 10.00, 30.00 |"
  assert len(trained) == 4  # nothing is done twice
  code, _, errors = in_process(*command, "--domains", "sketched")
  assert (code, errors.count("\n")) == (2, 1)
  assert "unknown domain 'sketched', expected one of rotated, inverted, blurred, noised" in errors
  code, _, errors = in_process(*command, "--config", "configs/digits.py")
  assert code == 2
  assert "data.source of configs/digits.py is tfds, expected domains" in errors


def test_the_sheet_of_all_domains(in_process, tmp_path):
  root, sheet = write_domains(tmp_path / "data"), tmp_path / "sheet.png"
  command = ("tools/domains.py", "--config", "configs/domains.py:folder", "--sheet", sheet)
  code, _, _ = in_process(*command, f"--config.data.name={root}")
  assert code == 0
  with Image.open(sheet) as image:
    assert image.height > image.width / 2  # three rows of five
  drawn = sheet.read_bytes()
  (root / "photo/cat/00.png").write_bytes(b"damaged")
  code, _, errors = in_process(*command, f"--config.data.name={root}")
  assert (code, errors.count("\n")) == (2, 1)
  assert "photo/cat/00.png is not a readable image" in errors
  assert sheet.read_bytes() == drawn


@pytest.mark.slow
def test_a_run_that_is_killed_ends_like_one_that_was_not(start, tmp_path):
  """On digits: the same metrics, the same test, bit for bit."""
  options = (
    *("train.py", "--config", "configs/domains.py", "--config.num_epochs=4"),
    *("--config.eval_every_epochs=1", "--config.log_every_steps=5"),
    *("--config.checkpoints.every_steps=7", "--config.optimizer.warmup_epochs=1"),
  )
  [whole] = start(*options, "--workdir", tmp_path / "whole", processes=1)
  [killed] = start(*options, "--workdir", tmp_path / "killed", processes=1)
  wait_for_line(killed, "epoch    2.")
  killed.kill()
  finish([whole, killed])
  again = start(*options, "--workdir", tmp_path / "killed", processes=1)
  [(code, _, errors)] = finish(again)
  assert code == 0, errors
  for name in ("metrics.jsonl", "test.json"):
    assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
