"""What a run says: rates without what is no training, memory, initial weights, averages."""

import io
import multiprocessing
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from tqdm import tqdm

from gfnet_jax.config_files import load_config
from gfnet_jax.models import platform
from gfnet_jax.training import console
from gfnet_jax.training.console import ProgressBar, Stopwatch


@pytest.fixture
def clock(monkeypatch):
  """A clock that a test sets forward."""
  clock = SimpleNamespace(now=100.0)
  monkeypatch.setattr(console.time, "monotonic", lambda: clock.now)
  return clock


def test_the_first_step_is_not_in_the_rate(clock):
  watch = Stopwatch(batch_size=8)

  def batches():
    for seconds in (30.0, 1.0, 1.0, 0.0):
      clock.now += seconds  # the workers start; later batches are read
      yield seconds

  steps = watch.waits(batches())
  next(steps)
  clock.now += 60.0  # compiles
  watch.count(jax.numpy.zeros(1))
  assert not watch.read().keys() & {"images_per_second", "step_seconds", "data_wait_seconds"}
  for _ in range(2):
    next(steps)
    clock.now += 3.0
    watch.count(None)
  with watch.paused():
    clock.now += 1000.0
  speed = watch.read()
  assert speed["images_per_second"] == 2.0  # 16 images in 8 seconds
  assert (speed["step_seconds"], speed["data_wait_seconds"]) == (4.0, 1.0)
  next(steps)
  clock.now += 2.0
  watch.count(None)
  assert watch.read()["images_per_second"] == 4.0


@pytest.mark.parametrize(
  ("precision", "instructions", "said"),
  [("bf16", True, False), ("bf16", False, True), ("default", False, False)],
)
def test_a_run_says_that_a_processor_imitates_bfloat16(
  monkeypatch, capsys, precision, instructions, said
):
  monkeypatch.setattr(platform, "_cpu_has_bfloat16_products", lambda: instructions)
  config = load_config("digits")
  config.precision = precision
  console.describe_run(config, Path("run"), {}, first_step=0, num_steps=1)
  assert ("--config.precision=default" in capsys.readouterr().out) == said


def test_memory_counts_the_workers():
  alone = Stopwatch(1).read()
  receiver, sender = multiprocessing.Pipe()
  child = multiprocessing.get_context("spawn").Process(
    target=_hold, args=(sender, 200 * 2**20), daemon=True
  )
  child.start()
  assert receiver.poll(None)
  both = Stopwatch(1).read()
  child.kill()
  child.join()
  assert alone["memory_gib"] == alone["host_memory_gib"] > 0.05
  assert both["host_memory_gib"] - alone["host_memory_gib"] > 200 / 1024


def _hold(sender, size: int) -> None:
  held = bytearray(b"x") * size
  sender.send(len(held))
  sender.poll(None)


def test_averaged_weights_are_on_the_screen(capsys):
  results = {"top1": 50.0, "top5": 75.0, "loss": 1.0, "images": 8, "images_per_second": 100.0}
  averages = {"ema_top1": 60.0, "ema_top5": 80.0, "ema_loss": 0.5}
  with ProgressBar(0, 10) as bar:
    bar.print_evaluation(1.5, results)
    bar.print_evaluation(1.5, results | averages)
  line = "epoch    1.50   top-1  50.00 %   top-5  75.00 %   loss 1.0000   8 images   100 images/s"
  averaged = "averaged        top-1  60.00 %   top-5  80.00 %   loss 0.5000"
  assert capsys.readouterr().out.splitlines() == [line, line, averaged]
  assert re.search("top-1", line).start() == re.search("top-1", averaged).start()


def test_the_size_of_the_parts_of_a_network():
  def array(*shape):
    return jax.ShapeDtypeStruct(shape, "float32")

  parameters = {
    "blocks.0.mlp.fc1.bias": array(2000),
    "blocks.1.mlp.fc1.bias": array(4),
    "head.kernel": array(3, 5),
    "head.bias": array(5),
    "pos_embed": array(2, 2, 2),
  }
  assert console.describe_parameters(parameters) == (
    "2,032 parameters (blocks 2,004, head 20, pos_embed 8); all arrays in parameters.txt"
  )
  hierarchical = {
    "patch_embed.0.proj.bias": array(1),
    "blocks.0.0.mlp.fc1.bias": array(2),
    "blocks.0.1.mlp.fc1.bias": array(3),
    "blocks.1.0.mlp.fc1.bias": array(7),
    "blocks.2.stacked.mlp.fc1.bias": array(9),
  }
  assert console.describe_parameters(hierarchical).startswith(
    "22 parameters (patch_embed.0 1, blocks.0 5, blocks.1 7, blocks.2 9); "
  )


def test_top5_of_few_classes_is_not_shown(capsys):
  results = {"top1": 50.0, "top5": 100.0, "loss": 1.0, "images": 8, "images_per_second": 100.0}
  for classes, shown in ((3, False), (5, False), (6, True)):
    with ProgressBar(0, 10, classes) as bar:
      bar.print_evaluation(1.0, results)
    assert ("top-5 100.00 %" in capsys.readouterr().out) == shown


def test_lines_of_progress_without_a_terminal(clock, capsys):
  values = {"train_loss": 0.5, "learning_rate": 1e-3, "images_per_second": 1234.0}
  values["step_seconds"] = 2.0
  with ProgressBar(0, 100) as bar:
    for _ in range(50):
      clock.now += 2.0
      bar.show(values)
      bar.advance()
  lines = capsys.readouterr().out.splitlines()
  assert lines == [
    "step 15 of 100   loss 0.5000, lr 1.00e-03, 1,234 img/s, 02:50 left",
    "step 30 of 100   loss 0.5000, lr 1.00e-03, 1,234 img/s, 02:20 left",
    "step 45 of 100   loss 0.5000, lr 1.00e-03, 1,234 img/s, 01:50 left",
  ]


def test_the_first_lines_know_no_rate_and_a_terminal_gets_a_bar(clock, capsys, monkeypatch):
  with ProgressBar(5, 9) as bar:
    clock.now += 31.0
    bar.show({"learning_rate": 1e-3})
    assert capsys.readouterr().out == "step 6 of 9   loss nan, lr 1.00e-03\n"
    monkeypatch.setattr(bar, "_bar", tqdm(disable=False, file=io.StringIO()))
    clock.now += 31.0
    bar.show({"learning_rate": 1e-3})
  assert capsys.readouterr().out == ""
