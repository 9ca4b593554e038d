"""From a source to batches of uint8 images: order, augmentation, bad data.

Everything is a pure function of the seed and of a sample's position in the run, never
of workers, threads or processes: step k sees the same global batch on any machine and
after any restart, and the whole state of the iterator is the number of steps done.

With repeated augmentation, an epoch shows every image of a part of the source `repeats`
times, each time augmented anew (arXiv:1901.09335; official: DeiT's RASampler). The
repetitions are far apart in a batch, so that they fall on different devices.
"""

import logging
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import grain
import numpy as np

from gfnet_jax.data.erasing import Erasing, draw_erasing_boxes
from gfnet_jax.data.records import BadRecordError, Source
from gfnet_jax.data.transforms import (
  BadImageError,
  EvalTransform,
  TrainTransform,
  decode_image,
  open_image,
)
from gfnet_jax.data.workers import iterate_batches
from gfnet_jax.errors import UserError

logger = logging.getLogger(__name__)
Batch = dict[str, np.ndarray]
PADDING = -1  # the label of the images that fill up the last batch of an evaluation
NO_ERASING = Erasing()
REPLACEMENTS = 100  # tried for an unreadable image before the data set is given up


class Share(NamedTuple):
  """The part of every global batch that one process reads: equal and contiguous.

  Args:
    batch_size: rows of the global batch; a multiple of process_count.
    process_index: of this process.
    process_count: of the run.
  """

  batch_size: int
  process_index: int = 0
  process_count: int = 1

  @property
  def rows(self) -> int:
    return self.batch_size // self.process_count

  def batch_and_row(self, i: int) -> tuple[int, int]:
    """The global batch of the i-th sample of this process, and its row there."""
    batch, row = divmod(i, self.rows)
    return batch, self.process_index * self.rows + row


class Reading(NamedTuple):
  """How to read.

  Args:
    threads: per process; 0 reads a batch when it is asked for.
    prefetch: batches begun ahead, per process.
    workers: processes; 0 reads in this one.
  """

  threads: int = 4
  prefetch: int = 4
  workers: int = 0


class _Order:
  """Which image, in which epoch, for the how manieth time: by global batch and row."""

  def __init__(self, size: int, seed: int, batch_size: int, repeats: int):
    self._size, self._batch_size, self._repeats = size, batch_size, repeats
    self._images = grain.MapDataset.range(size).seed(seed).shuffle().repeat()
    # Repetitions follow each other in the order of the epoch, but not in a batch.
    rows = range(batch_size)
    self._places = [place for first in range(repeats) for place in rows[first::repeats]]

  def __call__(self, batch: int, row: int) -> tuple[int, int, int]:
    """Returns epoch, index in the source, repetition."""
    epoch, place = divmod(batch * self._batch_size + self._places[row], self._size)
    image, repetition = divmod(place, self._repeats)
    return epoch, self._images[epoch * self._size + image], repetition


class _TrainSamples:
  """Sample i of this process; every epoch is a new permutation of the source."""

  def __init__(
    self,
    source: Source,
    transform: TrainTransform,
    seed: int,
    share: Share,
    num_steps: int,
    repeats: int,
    erasing: Erasing,
  ):
    self._source, self._transform, self._seed = source, transform, seed
    self._share, self._num_steps, self._erasing = share, num_steps, erasing
    self._order = _Order(len(source), seed, share.batch_size, repeats)

  def __len__(self) -> int:
    return self._num_steps * self._share.rows

  def __getitem__(self, i: int) -> dict:
    epoch, index, repetition = self._order(*self._share.batch_and_row(i))
    for bad, candidate in enumerate(self._candidates(index)):
      rng = sample_rng(self._seed, epoch, index, repetition)
      try:
        return {**self._sample(candidate, rng), "bad": np.bool_(bad)}
      except BadRecordError as error:
        logger.warning("training image %d is replaced: %s", candidate, error)
    raise UserError(
      f"training image {index} and {REPLACEMENTS} others cannot be read (see the warnings above); "
      "check the data set"
    )

  def _sample(self, index: int, rng: random.Random) -> dict:
    sample = _load(self._source, index, lambda data: self._transform(open_image(data), rng))
    probability, max_count, _ = self._erasing
    if probability:
      size = sample["image"].shape[:2]
      sample["erase"] = draw_erasing_boxes(size, rng, probability=probability, max_count=max_count)
    return sample

  def _candidates(self, index: int) -> Iterator[int]:
    """The index itself, then what replaces it: the same for every process and epoch."""
    yield index
    rng = np.random.default_rng([self._seed, index])
    for _ in range(REPLACEMENTS):
      yield int(rng.integers(len(self._source)))


class _EvalSamples:
  """Every record once and in order, then padding up to whole global batches."""

  def __init__(self, source: Source, transform: EvalTransform, share: Share):
    self._source, self._transform, self._share = source, transform, share

  def __len__(self) -> int:
    return -(-len(self._source) // self._share.batch_size) * self._share.rows

  def __getitem__(self, i: int) -> dict:
    batch, row = self._share.batch_and_row(i)
    index = batch * self._share.batch_size + row
    if index >= len(self._source):
      blank = np.zeros((*self._transform.image_size, 3), np.uint8)
      return {"image": blank, "label": np.int32(PADDING)}
    try:
      return _load(self._source, index, lambda data: self._transform(decode_image(data)))
    except BadRecordError as error:
      # Neither left out nor replaced: that would be another test than the one asked for.
      raise UserError(f"evaluation image {index}: {error}; mend or remove it") from error


def _load(source: Source, index: int, transform: Callable[[bytes], np.ndarray]) -> dict:
  """One record as a sample.

  Raises:
    BadRecordError: if it cannot be read or decoded, with its name.
    UserError: if its label is out of range.
  """
  record = source[index]
  if not 0 <= record.label < len(source.class_names):
    raise UserError(
      f"{record.name} has the label {record.label}, expected 0 to {len(source.class_names) - 1}; "
      "correct the data set"
    )
  try:
    return {"image": transform(record.image), "label": np.int32(record.label)}
  except BadImageError as error:
    raise BadRecordError(f"{record.name} is {error}") from error


def sample_rng(seed: int, epoch: int, index: int, repetition: int = 0) -> random.Random:
  """The generator of one sample's augmentation."""
  words = np.random.SeedSequence([seed, epoch, index, repetition]).generate_state(2, np.uint64)
  return random.Random(int(words[0]) << 64 | int(words[1]))


def train_batches(
  source: Source,
  transform: TrainTransform,
  *,
  seed: int,
  share: Share,
  first_step: int,
  num_steps: int,
  reading: Reading,
  repeats: int = 1,
  erasing: Erasing = NO_ERASING,
) -> Iterator[Batch]:
  """This process's rows of the global batches first_step, ..., num_steps - 1.

  An image that cannot be read is logged and replaced by another one, which depends on
  the seed and its index alone.

  Args:
    source: the images.
    transform: from an opened image and a generator to (height, width, 3), uint8.
    seed: of the order and of all draws.
    share: of this process.
    first_step: number of steps done before.
    num_steps: of the whole run.
    reading: how to read.
    repeats: how often an epoch shows an image in a row; it shows a part of 1 / repeats.
    erasing: the boxes to draw for random erasing.

  Yields:
    {"image": (rows, height, width, 3) uint8, "label": (rows,) int32, "bad": (rows,) bool},
    where bad marks replacements; if the probability of erasing is not 0, besides
    {"erase": (rows, max_count, 4) int32} as from `draw_erasing_boxes`.

  Raises:
    UserError: for a label out of range, or if hardly an image can be read.
  """
  if not 1 <= repeats <= share.batch_size:
    raise UserError(f"data.repeats is {repeats}, expected 1 up to the batch size")
  samples = _TrainSamples(source, transform, seed, share, num_steps, repeats, erasing)
  return iterate_batches(samples, share.rows, first_step, **reading._asdict())


def check_fills_a_batch(source: Source, batch_size: int) -> None:
  """Raises UserError if a source holds fewer records than a global batch."""
  if len(source) < batch_size:
    raise UserError(
      f"the training split holds {len(source)} images, fewer than one batch of {batch_size}; "
      "choose a smaller data.batch_size"
    )


def check_bad_fraction(bad: int, seen: int, source: Source, max_bad_fraction: float) -> None:
  """Stops a run whose data is too bad.

  Allowed are max_bad_fraction of the samples seen or, before the end of the first
  epoch, of the source: one bad image at the start of a large data set is no reason to
  stop, but in a small one it is.

  Args:
    bad: number of samples so far that were replaced.
    seen: number of samples so far.
    source: of the samples.
    max_bad_fraction: allowed.

  Raises:
    UserError: if more are bad.
  """
  allowed = int(max_bad_fraction * max(seen, len(source)))
  if bad > allowed:
    raise UserError(
      f"{bad} of {seen} training samples could not be read (the warnings name them); "
      f"data.max_bad_fraction={max_bad_fraction:g} allows {allowed} so far in a data set of "
      f"{len(source)} images; mend the data or raise data.max_bad_fraction"
    )


def eval_batches(
  source: Source, transform: EvalTransform, *, share: Share, reading: Reading
) -> Iterator[Batch]:
  """This process's rows of all batches of one evaluation; label PADDING marks padding.

  Yields:
    {"image": (rows, height, width, 3) uint8, "label": (rows,) int32}.

  Raises:
    UserError: for an image that cannot be read, or a label out of range.
  """
  samples = _EvalSamples(source, transform, share)
  return iterate_batches(samples, share.rows, first_batch=0, **reading._asdict())
