"""Order, coverage, sharing between processes, resuming, workers."""

import io
import random

import numpy as np
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gfnet_jax.data.pipeline import (
  PADDING,
  Reading,
  Share,
  check_fills_a_batch,
  eval_batches,
  sample_rng,
  train_batches,
)
from gfnet_jax.data.records import Record
from gfnet_jax.data.transforms import EvalTransform
from gfnet_jax.errors import UserError


class NumberedSource:
  """Image i is a 4x4 PNG whose every pixel is i, its label i modulo 10."""

  def __init__(self, count: int):
    self.count = count
    self.class_names = [str(i) for i in range(10)]

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, i: int) -> Record:
    png = io.BytesIO()
    Image.new("RGB", (4, 4), (i, i, i)).save(png, "PNG")
    return Record(png.getvalue(), i % 10, f"numbered[{i}]")


class NoisyTransform:
  """Leaves the number in the first channel and draws the others."""

  def __call__(self, image: Image.Image, rng: random.Random) -> np.ndarray:
    pixels = np.array(image)
    pixels[..., 1:] = rng.randrange(256)
    return pixels


def train(source, *, steps, batch_size, process=(0, 1), first=0, seed=0, workers=0):
  return list(
    train_batches(
      source,
      NoisyTransform(),
      seed=seed,
      share=Share(batch_size, *process),
      first_step=first,
      num_steps=steps,
      reading=Reading(threads=2, prefetch=2, workers=workers),
    )
  )


def joined(parts: list[list[dict]]) -> list[np.ndarray]:
  """Global batches of images from those of several processes."""
  return [np.concatenate([part["image"] for part in step]) for step in zip(*parts, strict=True)]


@given(
  count=st.integers(12, 40), processes=st.sampled_from([1, 2, 3, 4]), seed=st.integers(0, 2**31)
)
@settings(deadline=None, max_examples=20)
def test_an_epoch_holds_every_index_once_for_any_number_of_processes(count, processes, seed):
  source, batch_size = NumberedSource(count), 12
  steps = count  # 12 epochs
  batches = joined(
    [
      train(source, steps=steps, batch_size=batch_size, process=(p, processes), seed=seed)
      for p in range(processes)
    ]
  )
  numbers = np.concatenate(batches)[:, 0, 0, 0].reshape(batch_size, count)
  np.testing.assert_array_equal(np.sort(numbers, axis=1), np.tile(np.arange(count), (12, 1)))
  assert len({tuple(epoch) for epoch in numbers}) == 12, "every epoch has an order of its own"


def test_global_batches_are_the_same_for_any_number_of_processes_and_workers():
  flags.FLAGS.mark_as_parsed()
  source = NumberedSource(50)
  whole = joined([train(source, steps=9, batch_size=12)])
  parts = joined([train(source, steps=9, batch_size=12, process=(p, 3)) for p in range(3)])
  workers = joined([train(source, steps=9, batch_size=12, workers=2)])
  np.testing.assert_array_equal(whole, parts)
  np.testing.assert_array_equal(whole, workers)


def test_a_later_start_continues_the_same_batches():
  source = NumberedSource(50)
  whole = joined([train(source, steps=9, batch_size=8)])
  resumed = joined([train(source, steps=9, batch_size=8, first=5)])
  np.testing.assert_array_equal(whole[5:], resumed)


def test_another_seed_means_another_order_and_other_draws():
  source = NumberedSource(50)
  one, other = (train(source, steps=4, batch_size=8, seed=seed) for seed in (0, 1))
  assert not np.array_equal(one[0]["image"], other[0]["image"])


def test_augmentation_depends_on_seed_epoch_and_index():
  draws = {
    sample_rng(seed, epoch, index).random()
    for seed in range(3)
    for epoch in range(3)
    for index in range(3)
  }
  assert len(draws) == 27
  assert sample_rng(1, 2, 3).random() == sample_rng(1, 2, 3).random()


@pytest.mark.parametrize("batch_size", [1, 4, 7, 13, 40])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_reads_every_image_once(batch_size, processes):
  batch_size *= processes
  source = NumberedSource(13)
  labels, images = [], []
  for process in range(processes):
    share = Share(batch_size, process, processes)
    for batch in eval_batches(source, EvalTransform(4), share=share, reading=Reading()):
      assert batch["image"].shape == (batch_size // processes, 4, 4, 3)
      labels += batch["label"].tolist()
      images += batch["image"][:, 0, 0, 0].tolist()
  real = [image for image, label in zip(images, labels, strict=True) if label != PADDING]
  assert sorted(real) == list(range(13))


def test_a_split_smaller_than_a_batch_is_refused():
  with pytest.raises(UserError, match="holds 5 images, fewer than one batch of 8"):
    check_fills_a_batch(NumberedSource(5), 8)
