"""From a source to batches of uint8 images: order, augmentation, Grain.

Everything is a pure function of the seed and of a sample's position in the run, never
of workers, threads or processes: step k sees the same global batch on any machine and
after any restart, and the whole state of the iterator is the number of steps done.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from gfnet_jax.data.sources import Source
from gfnet_jax.data.transforms import EvalTransform, TrainTransform, decode_image
from gfnet_jax.errors import UserError

Batch = dict[str, np.ndarray]
PADDING = -1  # the label of the images that fill up the last batch of an evaluation


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

  def position(self, i: int) -> int:
    """The position in the whole run of the i-th sample of this process."""
    batch, row = divmod(i, self.rows)
    return batch * self.batch_size + self.process_index * self.rows + row


class Reading(NamedTuple):
  """How Grain reads: threads per process, batches ahead, worker processes (0: none)."""

  threads: int = 4
  prefetch: int = 4
  workers: int = 0


class _TrainSamples:
  """Sample i of this process; every epoch is a new permutation of the source."""

  def __init__(
    self, source: Source, transform: TrainTransform, seed: int, share: Share, num_steps: int
  ):
    self._source, self._transform, self._seed = source, transform, seed
    self._share, self._num_steps = share, num_steps
    self._order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()

  def __len__(self) -> int:
    return self._num_steps * self._share.rows

  def __getitem__(self, i: int) -> dict:
    position = self._share.position(i)
    epoch, index = position // len(self._source), self._order[position]
    record = self._source[index]
    image = self._transform(decode_image(record.image), sample_rng(self._seed, epoch, index))
    return {"image": image, "label": np.int32(record.label)}


class _EvalSamples:
  """Every record once and in order, then padding up to whole global batches."""

  def __init__(self, source: Source, transform: EvalTransform, share: Share):
    self._source, self._transform, self._share = source, transform, share

  def __len__(self) -> int:
    return -(-len(self._source) // self._share.batch_size) * self._share.rows

  def __getitem__(self, i: int) -> dict:
    index = self._share.position(i)
    if index >= len(self._source):
      blank = np.zeros((*self._transform.image_size, 3), np.uint8)
      return {"image": blank, "label": np.int32(PADDING)}
    record = self._source[index]
    return {"image": self._transform(decode_image(record.image)), "label": np.int32(record.label)}


def sample_rng(seed: int, epoch: int, index: int) -> random.Random:
  """The generator of one sample's augmentation."""
  words = np.random.SeedSequence([seed, epoch, index]).generate_state(2, np.uint64)
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
) -> Iterator[Batch]:
  """This process's rows of the global batches first_step, ..., num_steps - 1.

  Yields:
    {"image": (rows, height, width, 3) uint8, "label": (rows,) int32}.
  """
  samples = _TrainSamples(source, transform, seed, share, num_steps)
  return _read(samples, share, reading, first_step)


def check_fills_a_batch(source: Source, batch_size: int) -> None:
  """Raises UserError if a source holds fewer records than a global batch."""
  if len(source) < batch_size:
    raise UserError(
      f"the training split holds {len(source)} images, fewer than one batch of {batch_size}; "
      "choose a smaller data.batch_size"
    )


def eval_batches(
  source: Source, transform: EvalTransform, *, share: Share, reading: Reading
) -> Iterator[Batch]:
  """This process's rows of all batches of one evaluation; label PADDING marks padding.

  Yields:
    {"image": (rows, height, width, 3) uint8, "label": (rows,) int32}.
  """
  return _read(_EvalSamples(source, transform, share), share, reading, first_batch=0)


def _read(samples, share: Share, reading: Reading, first_batch: int) -> Iterator[Batch]:
  batches = grain.MapDataset.source(samples).batch(share.rows)[first_batch:]
  batches = batches.to_iter_dataset(grain.ReadOptions(reading.threads, reading.prefetch))
  if reading.workers:
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(reading.workers, reading.prefetch))
  return iter(batches)
