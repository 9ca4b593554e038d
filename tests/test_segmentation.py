"""Segmentation: counting pixels, the recipe, masks as files, and runs from training to predict."""

import contextlib
import dataclasses
import io
import json
import shutil
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled, read_lines
from parity import torch
from PIL import Image
from test_masks import write_ade20k

import gfnet_jax
from configs import segmentation
from gfnet_jax.checkpoints.finding import best_of
from gfnet_jax.data.segmentation.transforms import IGNORED
from gfnet_jax.data.sources import shapes
from gfnet_jax.data.sources.shapes import SPLITS, ShapesSource
from gfnet_jax.errors import UserError
from gfnet_jax.inference.coloured_masks import coloured, palette
from gfnet_jax.inference.mask_files import mask_paths
from gfnet_jax.inference.metrics import format_results
from gfnet_jax.inference.pixels import PixelCounts, count_pixels, resample, scores_of, total_counts
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.inference.segmentation import summarize_pixels
from gfnet_jax.inference.segmentation_report import describe_classes, lines_of, shown_part
from gfnet_jax.losses import pixel_cross_entropy
from gfnet_jax.training import loop
from gfnet_jax.training.choices import advise_batch
from gfnet_jax.training.config_rules import check_config
from gfnet_jax.training.metrics import Outcome, accuracy
from gfnet_jax.training.optimizer import make_schedule
from gfnet_jax.training.segmentation import LEFT_OUT
from gfnet_jax.training.tasks import learning_of


@pytest.fixture(autouse=True)
def _standard_promotion():
  with jax.numpy_dtype_promotion("standard"):  # optax multiplies integers and floats
    yield


# --- Counting ---------------------------------------------------------------------------


def test_scores_by_hand():
  """Three classes, the last in neither; class 0: IoU 3/6, class 1: 1/4; one pixel ignored."""
  labels = np.array([[[0, 0, 0, 0], [1, 1, IGNORED, 0]]], np.uint8)
  predicted = np.array([[[0, 0, 0, 1], [1, 0, 1, 1]]])
  logits = np.full((1, 2, 4, 3), -5, np.float32)
  np.put_along_axis(logits, predicted[..., None], 5, -1)
  confusion, loss = jax.jit(count_pixels)(jnp.array(logits), jnp.array(labels))
  np.testing.assert_array_equal(confusion, [[3, 2, 0], [1, 1, 0], [0, 0, 0]])
  right = np.log(1 + 2 * np.exp(-10))  # -log softmax of the 5 among 5, -5, -5
  expected = 4 * right + 3 * (right + 10)
  assert float(loss) == pytest.approx(expected, rel=1e-5)
  scores = summarize_pixels([PixelCounts(confusion, loss, 1)])
  assert scores["miou"] == pytest.approx(100 * (3 / 6 + 1 / 4) / 2)
  assert scores["pixel_accuracy"] == pytest.approx(100 * 4 / 7)
  assert scores["class_accuracy"] == pytest.approx(100 * (3 / 5 + 1 / 2) / 2)
  assert (scores["images"], scores["loss"]) == (1, pytest.approx(expected / 7, rel=1e-5))
  assert format_results(scores | {"images_per_second": 3.0}).startswith("mIoU  37.50 %   pixels ")


def test_miou_equals_a_plain_count_on_random_masks_with_ignored_pixels():
  """The plain count goes from class to class, and never forms a confusion matrix."""
  rng, classes, counted, count = np.random.default_rng(0), 6, [], jax.jit(count_pixels)
  labels = rng.integers(0, classes - 1, (50, 9, 11)).astype(np.uint8)  # the last is never true
  labels[rng.random(labels.shape) < 0.2] = IGNORED
  predicted = rng.integers(0, classes, labels.shape)
  logits = np.eye(classes, dtype=np.float32)[predicted]
  for start in range(0, 50, 10):
    part = slice(start, start + 10)
    counted.append(PixelCounts(*count(logits[part], labels[part]), 10))
  ious = []
  for one in range(classes):
    inter = union = 0
    for label, guess in zip(labels, predicted, strict=True):
      known = label != IGNORED
      inter += int(((label == one) & (guess == one) & known).sum())
      union += int((((label == one) | (guess == one)) & known).sum())
    ious.append(inter / union)
  total = total_counts(counted)
  assert total.confusion.sum() == (labels != IGNORED).sum(), "every pixel once"
  assert scores_of(total.confusion)["miou"] == pytest.approx(100 * np.mean(ious), abs=1e-10)


def test_no_pixel_with_a_class_at_all():
  assert scores_of(np.zeros((3, 3), np.int64))["miou"] == 0.0


def test_logits_come_to_the_size_of_each_original_as_by_pytorch():
  rng, sizes, shape = np.random.default_rng(0), [(9, 14), (16, 11), (3, 2)], (16, 16)
  logits = rng.standard_normal((3, 8, 6, 4)).astype(np.float32)
  call = jax.jit(resample, static_argnums=2)
  found = call(jnp.array(logits), jnp.array(sizes, jnp.int32), shape)
  for one, result, (height, width) in zip(logits, found, sizes, strict=True):
    expected = torch.nn.functional.interpolate(
      torch.from_numpy(one).permute(2, 0, 1)[None], size=(height, width), mode="bilinear"
    )
    expected = expected[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(result[:height, :width], expected, rtol=1e-5, atol=2e-6)


def test_the_loss_equals_pytorchs_with_ignored_pixels_and_the_mean_over_all():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
  labels = rng.integers(-1, 5, (2, 3, 4)).astype(np.int32)
  loss = jax.jit(jax.value_and_grad(lambda x: pixel_cross_entropy(x, labels).mean()))
  found, gradient = loss(logits)
  tensor = torch.from_numpy(logits).requires_grad_()
  targets = torch.from_numpy(labels).long()
  expected = torch.nn.functional.cross_entropy(
    tensor.permute(0, 3, 1, 2), targets, ignore_index=-1, reduction="none"
  ).mean()
  expected.backward()
  assert float(found) == pytest.approx(expected.item(), rel=1e-6)
  np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_training_accuracy_is_that_of_pixels_with_a_class():
  labels = jnp.array([[[0, 1], [-1, -1]], [[-1, -1], [-1, -1]]])
  logits = jax.nn.one_hot(jnp.array([[[0, 0], [0, 0]], [[1, 1], [1, 1]]]), 2)
  outcome = Outcome(None, logits, labels, None, None, None, None)
  np.testing.assert_array_equal(accuracy(outcome), [0.5, 0.0])


# --- The recipe -------------------------------------------------------------------------


def test_the_published_recipe():
  config = segmentation.get_config("gfnet-h-b")
  check_config(config)
  learning_of(config.model).check(config)
  steps_per_epoch = 20_210 / 32
  assert round(config.num_epochs * steps_per_epoch) == 40_000
  rate = make_schedule(config, steps_per_epoch)
  assert rate(0) == 2e-4
  assert rate(20_000) == pytest.approx(2e-4 * 0.5**0.9)
  assert 0 < rate(39_999) < 2e-8
  assert (config.model.num_classes, config.optimizer.weight_decay) == (150, 1e-4)


@pytest.mark.parametrize("field", LEFT_OUT)
def test_what_knows_nothing_of_masks_is_refused(field):
  config = segmentation.get_config()
  config.update_from_flattened_dict({field: {"": "x", 0.0: 0.5, None: (0.1, 0.5)}[LEFT_OUT[field]]})
  with pytest.raises(UserError, match=f"^{field} is .*with model.decoder='semantic-fpn'"):
    learning_of(config.model).check(config)


def test_the_advice_for_few_images_is_for_networks_that_segment():
  config = segmentation.get_config("gfnet-h-ti")
  assert advise_batch(config, 12, 1) == "choose --config.data.batch_size=8"


def test_fields_of_masks_without_a_decoder_are_refused():
  config = segmentation.get_config()
  config.model.decoder = config.model.decoder_dims = None
  with pytest.raises(UserError, match=r"segmentation.\w+ is .*, expected None for a network that"):
    learning_of(config.model).check(config)


# --- Pictures and files -----------------------------------------------------------------


def test_a_coloured_mask_holds_the_classes_and_their_colours():
  labels = np.array([[0, 1], [2, IGNORED]], np.uint8)
  file = io.BytesIO()
  coloured(labels).save(file, "PNG")
  read = Image.open(file)
  assert read.mode == "P"
  np.testing.assert_array_equal(np.array(read), labels)
  colours = palette()
  assert read.convert("RGB").getpixel((1, 0)) == colours[1]
  assert len(set(colours[:151])) == 151
  assert (colours[0], colours[IGNORED]) == ((0, 0, 0), (255, 255, 255))


def test_networks_that_no_mask_can_be_made_of():
  saved = SavedModel(SimpleNamespace(num_classes=256), dict(decoder="semantic-fpn"))
  with pytest.raises(
    UserError, match="has 256 classes, expected at most 255, as a value of a mask"
  ):
    gfnet_jax.segment(saved, "photo.jpg")
  saved = dataclasses.replace(saved, config={})
  with pytest.raises(UserError, match="classifies whole images, expected one that segments them"):
    gfnet_jax.segment(saved, "photo.jpg")


def test_masks_that_would_be_one_file(tmp_path):
  with pytest.raises(UserError, match=r"the masks of a/x.jpg and b/x.png would both be out/x.png"):
    mask_paths(
      [tmp_path.__class__(name) for name in ("a/x.jpg", "b/x.png")], tmp_path.__class__("out")
    )
  with pytest.raises(UserError, match="would replace it; name another folder"):
    mask_paths([tmp_path / "x.png"], tmp_path)


def test_the_report_of_many_classes_shows_the_worst():
  confusion = np.diag(np.arange(1, 41))
  confusion[3, 7] = 5
  counts, rows, columns = shown_part(confusion, [f"class {i}" for i in range(40)])
  assert counts.shape == (30, 31) and columns[-1] == "10 others"
  assert {"class 3", "class 7"} <= set(rows)
  assert counts[rows.index("class 3"), rows.index("class 7")] == round(100 * 5 / 9)
  classes = describe_classes(confusion, rows + ["x"] * 10)
  assert classes[3]["iou"] == pytest.approx(100 * 4 / 9)
  assert lines_of(classes)[0] == "The 10 of 40 classes with the lowest IoU:"


def test_the_best_checkpoint_has_the_greatest_miou():
  metadata = {step: {"metrics": {"miou": miou}} for step, miou in ((1, 5.0), (2, 9.0), (3, 7.0))}
  assert best_of(metadata, "top1") == 2
  assert best_of({1: {"metrics": {"ema_miou": 3.0}}, 2: {"metrics": {}}}, "ema_top1") == 1


# --- Runs -------------------------------------------------------------------------------


def tiny_config(**changes):
  """Eight steps of the default, with next to no network."""
  config = segmentation.get_config()
  config.update(num_epochs=8.0, eval_every_epochs=4.0, log_every_steps=2, ema_decay=0.5, **changes)
  config.model.update(image_size=32, patch_size=4, embed_dims=(4, 6), depths=(1, 1))
  config.model.decoder_dims = (6, 4)
  config.model.drop_path_rate = 0.2
  config.data.update(batch_size=8, eval_batch_size=4)
  return config


@pytest.fixture(scope="module")
def few_shapes():
  """Eight images to train on and three to evaluate on, of one size: one program for all."""
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(shapes, "SIZES", shapes.SIZES[:1])
    for split, images in {"train": 8, "test": 3}.items():
      monkeypatch.setitem(SPLITS, split, images)
    yield


@pytest.fixture(scope="module")
def whole_run(few_shapes, tmp_path_factory):
  """The directory of a run with a report, what `train` returned, and what was printed.

  Beside it, `at_step_6` is the directory as the end of the process at step 6 would have left it.
  """
  workdir = tmp_path_factory.mktemp("whole") / "run"
  log, printed = loop.log, io.StringIO()

  def log_and_copy(run, state, step, guards, *others):
    if step == 6:
      guards.checkpoints.wait()
      shutil.copytree(
        workdir, workdir.with_name("at_step_6"), ignore=shutil.ignore_patterns("lock*")
      )
    return log(run, state, step, guards, *others)

  with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(printed):
    monkeypatch.setattr(loop, "log", log_and_copy)
    with jax.numpy_dtype_promotion("standard"):
      results = gfnet_jax.train(tiny_config(report=True), workdir)
  return workdir, results, printed.getvalue()


def test_a_run_trains_evaluates_reports_and_predicts(whole_run, tmp_path, in_process):
  run, results, printed = whole_run
  lines = read_lines(run / "metrics.jsonl")
  assert {"train_loss", "train_accuracy"} <= lines[0].keys()
  assert lines[-1]["eval_ema_miou"] == results["ema_miou"] and results["images"] == 3
  report = json.loads((run / "report/report.json").read_text())
  assert report["miou"] == results["miou"]
  pixels = sum(height * width for height, width in ShapesSource("test").sizes())
  assert sum(found["pixels"] for found in report["classes"]) == pixels
  with Image.open(run / "report/predictions.png") as sheet:
    assert sheet.width > 1000
  assert "averaged" in printed and "mIoU" in printed

  saved = gfnet_jax.load_model(run)
  statistic = next(n for n in compiled(saved.model).args[0] if n.endswith("running_mean"))
  assert compiled(saved.model).args[0][statistic].any(), "the norms have seen images"
  again = gfnet_jax.evaluate(saved, batch_size=8)
  assert again["miou"] == pytest.approx(results["miou"], abs=1e-3)

  record = ShapesSource("test")[0]
  image = tmp_path / "photo.ppm"
  image.write_bytes(record.image)
  code, printed, _ = in_process("tools/predict.py", run, image, "--segment", tmp_path / "masks")
  assert code == 0 and f"{image} -> {tmp_path}/masks/photo.png" in printed and "ground" in printed
  with Image.open(tmp_path / "masks/photo.png") as mask:
    assert (mask.height, mask.width) == ShapesSource("test").sizes()[0] and mask.mode == "P"
    np.testing.assert_array_equal(np.array(mask), gfnet_jax.segment(saved, image))
  code, _, error = in_process("tools/predict.py", run, image)
  assert code == 2 and "error: the model segments images, expected one that classifies" in error
  code, _, error = in_process("eval.py", "--checkpoint", run, "--source", "digits", "--data", run)
  assert code == 2


def test_the_end_of_a_run_names_the_command_for_its_network(tmp_path, in_process, monkeypatch):
  monkeypatch.setattr(gfnet_jax, "train", lambda config, workdir: {"miou": 1.0}, raising=False)
  run = ("train.py", "--workdir", tmp_path, "--config")
  _, printed, _ = in_process(*run, "configs/segmentation.py")
  command = f"python tools/predict.py {tmp_path} IMAGE"
  assert printed.splitlines()[-1] == f"Segment an image with: {command} --segment masks"
  _, printed, _ = in_process(*run, "configs/digits.py")
  assert printed.splitlines()[-1] == f"Classify an image with: {command}"


def assert_same_run(first, second):
  """Parameters, their averages, running statistics and metrics of two work directories."""
  for ema in (False, True):
    one, two = (
      compiled(gfnet_jax.load_model(run, ema=ema).model).args[0] for run in (first, second)
    )
    assert any(name.endswith("running_variance") for name in one)
    for name, value in one.items():
      np.testing.assert_array_equal(value, two[name], err_msg=name)
  assert read_lines(first / "metrics.jsonl") == read_lines(second / "metrics.jsonl")


def test_a_run_continues_bit_for_bit(whole_run, tmp_path, capsys):
  stopped = tmp_path / "stopped"
  shutil.copytree(whole_run[0].with_name("at_step_6"), stopped)
  assert max(line["step"] for line in read_lines(stopped / "metrics.jsonl")) == 4
  gfnet_jax.train(tiny_config(report=False), stopped)
  assert "resumed after 4" in capsys.readouterr().out
  assert_same_run(whole_run[0], stopped)


@pytest.mark.slow
def test_a_run_continues_bit_for_bit_after_a_kill(tmp_path, start):
  """Real processes; the second is killed after its first checkpoint, and continued."""
  for split in ("training", "validation"):
    write_ade20k(tmp_path / "data", split, sizes=[(40, 60)] * 8)
  arguments = [
    *("train.py", "--config", "configs/segmentation.py:gfnet-h-ti", "--config.init_checkpoint="),
    *(f"--config.data.name={tmp_path / 'data'}", "--config.data.reading.workers=0"),
    *("--config.model.num_classes=3", "--config.model.image_size=32", "--config.ema_decay=0.5"),
    *("--config.model.embed_dims=(4,6)", "--config.model.depths=(1,1)"),
    *("--config.model.decoder_dims=(6,4)", "--config.data.batch_size=4"),
    *("--config.num_epochs=8", "--config.eval_every_epochs=2", "--config.log_every_steps=2"),
    *("--config.precision=default", "--workdir"),
  ]
  [whole] = start(*arguments, tmp_path / "whole", processes=1)
  assert whole.wait() == 0, whole.stderr.read()
  [killed] = start(*arguments, tmp_path / "killed", processes=1)
  while not list((tmp_path / "killed/checkpoints").glob("0*")):
    assert killed.poll() is None
  killed.send_signal(signal.SIGKILL)
  killed.wait()
  [again] = start(*arguments, tmp_path / "killed", processes=1)
  assert again.wait() == 0, again.stderr.read()
  assert "resumed after" in again.stdout.read()
  assert_same_run(tmp_path / "whole", tmp_path / "killed")
