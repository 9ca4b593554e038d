"""Order, coverage, sharing between processes, resuming, repeats, erasing, bad data."""

import io
import multiprocessing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from worker_sources import DamagedSource, DeadlySource, NoisyTransform, NumberedSource

from gfnet_jax.data.erasing_boxes import Erasing
from gfnet_jax.data.order import nth_batch
from gfnet_jax.data.pipeline import (
  DataError,
  Reading,
  check_bad_fraction,
  check_fills_a_batch,
  eval_batches,
  train_batches,
)
from gfnet_jax.data.samples import PADDING, Share, sample_rng, try_transforms
from gfnet_jax.data.sources.records import Record
from gfnet_jax.data.transforms import EvalTransform, TrainTransform
from gfnet_jax.errors import UserError


def train(source, *, steps, batch_size, process=(0, 1), first=0, seed=0, workers=0, **options):
  return list(
    train_batches(
      source,
      NoisyTransform(),
      seed=seed,
      share=Share(batch_size, *process),
      first_batch=first,
      num_batches=steps,
      reading=Reading(threads=2, prefetch=2, workers=workers),
      **options,
    )
  )


def joined(parts: list[list[dict]]) -> list[np.ndarray]:
  """Global batches of images from those of several processes."""
  return [np.concatenate([part["image"] for part in step]) for step in zip(*parts, strict=True)]


@given(
  count=st.integers(12, 20), processes=st.sampled_from([1, 2, 3, 6]), seed=st.integers(0, 2**31)
)
@settings(max_examples=10)
def test_an_epoch_holds_every_index_once_for_any_number_of_processes(count, processes, seed):
  source, batch_size = NumberedSource(count), 6
  steps = count  # six epochs
  batches = joined(
    [
      train(source, steps=steps, batch_size=batch_size, process=(p, processes), seed=seed)
      for p in range(processes)
    ]
  )
  numbers = np.concatenate(batches)[:, 0, 0, 0].reshape(batch_size, count)
  np.testing.assert_array_equal(np.sort(numbers, axis=1), np.tile(np.arange(count), (6, 1)))
  assert len({tuple(epoch) for epoch in numbers}) == 6, "every epoch has an order of its own"


def test_global_batches_are_the_same_for_any_number_of_processes_and_workers():
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


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skipped", [[3], [0, 8, 4], [4, 5, 5, 7, 20]])
def test_skipped_batches_are_left_out_of_the_same_batches_and_not_read(skipped, workers):
  source = NumberedSource(50)
  whole = joined([train(source, steps=9, batch_size=8, repeats=2)])
  numbers = {i: set(images[:, 0, 0, 0].tolist()) for i, images in enumerate(whole)}
  for first in range(10):
    wanted = [i for i in range(first, 9) if i not in skipped]
    unread = set(range(50)).difference(*(numbers[i] for i in wanted))
    readable = DamagedSource(50)
    readable.damaged = tuple(unread)
    options = dict(steps=9, batch_size=8, repeats=2, first=first, skipped=skipped)
    found = train(readable, workers=workers if first == 2 else 0, **options)
    assert not any(batch["bad"].any() for batch in found)
    assert len(found) == len(wanted)
    for i, images in zip(wanted, joined([found]), strict=True):
      np.testing.assert_array_equal(images, whole[i])
    shares = [train(readable, process=(p, 2), **options) for p in range(2)]
    np.testing.assert_array_equal(joined([found]), joined(shares))


@given(skipped=st.sets(st.integers(0, 30)), n=st.integers(0, 30))
def test_the_nth_batch_is_that_of_the_list_without_the_skipped_ones(skipped, n):
  assert nth_batch(n, skipped) == [i for i in range(62) if i not in skipped][n]


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


@pytest.mark.parametrize(("count", "batch_size", "repeats"), [(48, 12, 3), (50, 16, 3), (30, 8, 2)])
def test_repeated_augmentation_spreads_fresh_copies_over_the_batch(count, batch_size, repeats):
  source = NumberedSource(count)
  steps = 4 * count // batch_size
  batches = joined([train(source, steps=steps, batch_size=batch_size, repeats=repeats)])
  rows = [{} for _ in range(count // batch_size)]  # of the first epoch
  for batch, images in zip(rows, batches, strict=False):
    for row, image in enumerate(images):
      batch.setdefault(int(image[0, 0, 0]), []).append(row)
  # Copies in a batch are a device's share apart, for as many devices as copies divide it.
  gaps = [np.diff(places) for batch in rows for places in batch.values()]
  assert min(np.concatenate(gaps)) >= batch_size // repeats - bool(batch_size % repeats)
  drawn = np.concatenate(batches)[: len(rows) * batch_size, 0, 0, :2]
  # Draws differ between copies: not always, one byte being drawn.
  assert len(np.unique(drawn, axis=0)) > len(np.unique(drawn[:, 0])) * 1.5
  parts = [
    train(source, steps=steps, batch_size=batch_size, repeats=repeats, process=(p, 2), first=3)
    for p in range(2)
  ]
  np.testing.assert_array_equal(batches[3:], joined(parts))


def test_an_epoch_of_repeated_augmentation_shows_a_part_of_the_images():
  source = NumberedSource(48)
  batches = joined([train(source, steps=8, batch_size=12, repeats=3)])
  for epoch in (batches[:4], batches[4:]):
    numbers, counts = np.unique(np.concatenate(epoch)[:, 0, 0, 0], return_counts=True)
    assert len(numbers) == 16
    assert set(counts) == {3}


def test_repeats_must_fit_a_batch():
  with pytest.raises(UserError, match=r"data\.repeats is 0") as caught:
    train(NumberedSource(8), steps=1, batch_size=4, repeats=0)
  assert not isinstance(caught.value, DataError)


def test_erasing_boxes_are_drawn_for_every_sample_and_leave_the_images_alone():
  source = NumberedSource(40)
  plain = train(source, steps=10, batch_size=8)
  erased = train(source, steps=10, batch_size=8, erasing=Erasing(probability=0.5, max_count=2))
  assert all("erase" not in batch for batch in plain)
  boxes = np.concatenate([batch["erase"] for batch in erased])
  assert boxes.shape == (80, 2, 4)
  assert boxes.dtype == np.int32
  assert 20 < np.sum(boxes[:, 0, 2] > 0) < 60
  np.testing.assert_array_equal(joined([plain]), joined([erased]))


def test_bad_images_are_replaced_flagged_and_logged_for_any_reading(caplog):
  source = DamagedSource(40)
  whole = train(source, steps=10, batch_size=8)
  clean = train(NumberedSource(40), steps=10, batch_size=8)
  for batch, expected in zip(whole, clean, strict=True):
    numbers = expected["image"][:, 0, 0, 0]
    np.testing.assert_array_equal(batch["bad"], np.isin(numbers, source.damaged))
    found = batch["image"][:, 0, 0, 0]
    assert not np.isin(found, source.damaged).any()
    np.testing.assert_array_equal(found[~batch["bad"]], numbers[~batch["bad"]])
    np.testing.assert_array_equal(batch["label"], found % 10)
  assert sum(batch["bad"].sum() for batch in whole) == 10  # five in each of two epochs
  for index in source.damaged:
    assert f"training image {index} is replaced: numbered[{index}]" in caplog.text
  parts = [train(source, steps=10, batch_size=8, process=(p, 2), workers=p) for p in range(2)]
  np.testing.assert_array_equal(joined([whole]), joined(parts))


def test_a_replacement_is_the_same_in_every_epoch():
  source = DamagedSource(40)
  batches = train(source, steps=20, batch_size=8)
  flagged = np.concatenate([batch["image"][batch["bad"]][:, 0, 0, 0] for batch in batches])
  assert len(flagged) == 20
  assert len(np.unique(flagged)) <= 5


def test_a_source_without_a_readable_image_is_given_up():
  source = DamagedSource(6)
  source.damaged = tuple(range(6))
  with pytest.raises(DataError, match="and 100 others cannot be read"):
    train(source, steps=1, batch_size=2)


def test_the_run_stops_above_the_allowed_part_of_bad_images():
  source = NumberedSource(50_000)
  check_bad_fraction(5, 100, source, 1e-4)  # early in the first epoch
  with pytest.raises(UserError, match=r"6 of 100 training samples .* allows 5 so far"):
    check_bad_fraction(6, 100, source, 1e-4)
  check_bad_fraction(10, 100_000, source, 1e-4)
  with pytest.raises(UserError, match="allows 0 so far in a data set of 40 images"):
    check_bad_fraction(1, 8, NumberedSource(40), 1e-4)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_does_not_pass_over_a_bad_image(workers):
  batches = eval_batches(
    DamagedSource(40), EvalTransform(4), share=Share(8), reading=Reading(workers=workers)
  )
  with pytest.raises(DataError, match=r"evaluation image 3: numbered\[3\] is not a readable image"):
    list(batches)


def test_a_worker_that_is_killed_is_an_error_of_the_data():
  with pytest.raises(DataError, match=r"worker process \d+ ended with exit code -9"):
    train(DeadlySource(16), steps=9, batch_size=8, workers=1)
  batches = eval_batches(
    DeadlySource(16), EvalTransform(4), share=Share(8), reading=Reading(workers=1)
  )
  with pytest.raises(DataError, match=r"worker process \d+ ended with exit code -9"):
    list(batches)


def test_closing_batches_ends_their_workers():
  before = len(multiprocessing.active_children())
  batches = train_batches(
    NumberedSource(16),
    NoisyTransform(),
    seed=0,
    share=Share(8),
    first_batch=0,
    num_batches=10**6,
    reading=Reading(workers=1),
  )
  next(batches)
  assert len(multiprocessing.active_children()) == before + 1
  batches.close()
  assert len(multiprocessing.active_children()) == before


def test_a_bug_is_no_error_of_the_data():
  class Faulty(NumberedSource):
    def __getitem__(self, i: int) -> Record:
      raise KeyError(i)

  with pytest.raises(KeyError):
    train(Faulty(16), steps=1, batch_size=8)


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_out_of_range_stops_at_once(label):
  class Mislabelled(NumberedSource):
    def __getitem__(self, i: int) -> Record:
      record = super().__getitem__(i)
      return record._replace(label=label) if i == 5 else record

  message = rf"numbered\[5\] has the label {label}, expected 0 to 9"
  with pytest.raises(DataError, match=message):
    train(Mislabelled(16), steps=2, batch_size=8)
  with pytest.raises(DataError, match=message):
    list(eval_batches(Mislabelled(16), EvalTransform(4), share=Share(8), reading=Reading()))


class SizedSource:
  """Images of one size, by name; some cannot be read."""

  class_names = ("one",)

  def __init__(self, name, width, height, *, bad=False):
    self.name, self.size, self.bad = name, (width, height), bad

  def __len__(self):
    return 3

  def __getitem__(self, index):
    png = io.BytesIO()
    Image.new("L", self.size).save(png, "PNG")
    return Record(png.getvalue()[: 20 if self.bad else None], 0, f"{self.name}[{index}]")


@pytest.mark.parametrize(
  ("train", "evaluation", "image_size", "crop", "message"),
  [
    ((32, 32), (31, 32), 32, "pad", r"val\[0\]: got an image of 32x31 .* expected 32x32"),
    ((60, 60), (28, 28), 32, "random_resized", r"val\[0\]: got an image of 28x28"),
    ((32, 16), (16, 32), (16, 32), "random_resized", r"val\[0\]: got an image of 32x16"),
    ((7, 7), (16, 16), 16, "pad", r"train\[0\]: got an image of 7x7 .* padded by 4, expected"),
  ],
)
def test_images_of_a_wrong_size_are_found_at_the_start(
  train, evaluation, image_size, crop, message
):
  transforms = TrainTransform(image_size=image_size, crop=crop), EvalTransform(image_size)
  sources = SizedSource("train", *train), SizedSource("val", *evaluation)
  with pytest.raises(UserError, match=message):
    try_transforms(sources[0], transforms[0], sources[1], transforms[1])


@pytest.mark.parametrize(("train", "evaluation"), [((32, 32), (32, 32)), ((24, 30), (32, 32))])
def test_images_that_fit_pass(train, evaluation):
  sources = SizedSource("train", *train), SizedSource("val", *evaluation)
  try_transforms(
    sources[0], TrainTransform(image_size=32, crop="pad"), sources[1], EvalTransform(32)
  )


def test_an_unreadable_first_image_matters_for_evaluation_only():
  good, bad = SizedSource("good", 32, 32), SizedSource("bad", 32, 32, bad=True)
  transforms = TrainTransform(image_size=32), EvalTransform(32)
  try_transforms(bad, transforms[0], good, transforms[1])
  with pytest.raises(UserError, match=r"evaluation image 0: bad\[0\] is not a readable image"):
    try_transforms(good, transforms[0], bad, transforms[1])
