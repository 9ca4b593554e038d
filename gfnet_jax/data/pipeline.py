"""From a source to batches of uint8 images, to train on or to evaluate on.

Batch k is the same for any number of workers, threads and processes and after any
restart, and the whole state of the iterator is the number of batches done.

With repeated augmentation, an epoch shows a part of the source, and each image of it
`repeats` times, augmented differently each time (arXiv:1901.09335; official: DeiT's
RASampler). The repetitions are far apart in a batch, to be on different devices.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from gfnet_jax.data.decode import warn_of_clipping
from gfnet_jax.data.erasing_boxes import Erasing
from gfnet_jax.data.order import training_order
from gfnet_jax.data.samples import LABELLED, Form, Share, TrainSamples
from gfnet_jax.data.sources.records import Source
from gfnet_jax.data.threads import Batch
from gfnet_jax.data.transforms import EvalTransform, TrainTransform
from gfnet_jax.data.workers import iterate_batches
from gfnet_jax.errors import UserError

NO_ERASING = Erasing()


class DataError(UserError):
  """Reading cannot continue: what iterating over batches raises for any mistake in the data.

  Being told apart from other errors, it lets a training run save what it has learnt so far.
  """


class Reading(NamedTuple):
  """The section `data.reading` of a config.

  Args:
    threads: per process; 0 reads a batch when it is asked for.
    prefetch: batches that are read ahead, per process; at least one.
    workers: processes; 0 reads in this one.
  """

  threads: int = 4
  prefetch: int = 4
  workers: int = 0


def train_batches(
  source: Source,
  transform: TrainTransform,
  *,
  seed: int,
  share: Share,
  first_batch: int,
  num_batches: int,
  skipped: Collection[int] = (),
  reading: Reading,
  repeats: int = 1,
  erasing: Erasing = NO_ERASING,
  form: Form = LABELLED,
) -> Iterator[Batch]:
  """This process's rows of the global batches first_batch, ..., num_batches - 1.

  An image that cannot be read is logged and replaced by another one, which depends on
  the seed and its index alone.

  Args:
    source: the images.
    transform: from an opened image and a generator to (height, width, 3), uint8.
    seed: of the order and of all draws.
    share: of this process.
    first_batch: index of the first batch to read.
    num_batches: of the whole run, including those before first_batch and the skipped ones.
    skipped: indices of the batches to leave out; they are not read.
    reading: threads and processes.
    repeats: how many times an epoch shows an image; it shows 1 / repeats of the images.
    erasing: the boxes to draw for random erasing.
    form: of the samples.

  Yields:
    {"image": (rows, height, width, 3) uint8, "label": (rows,) int32, "bad": (rows,) bool},
    where bad marks replacements; with masks "label" is (rows, height, width) uint8; if the
    probability of erasing is not 0, also {"erase": (rows, max_count, 4) int32} as from
    `draw_erasing_boxes`.

  Raises:
    UserError: if repeats does not fit the batch size.
    DataError: on iteration, for a label out of range, if almost no image can be read, or
      if a worker process dies.
  """
  if not 1 <= repeats <= share.batch_size:
    raise UserError(f"data.repeats is {repeats}, expected 1 up to the batch size")
  left_out = set(skipped)
  indices = (index for index in range(first_batch, num_batches) if index not in left_out)
  order = training_order(indices, size=len(source), seed=seed, share=share, repeats=repeats)
  samples = TrainSamples(source, transform, seed=seed, erasing=erasing, form=form)
  batches = iterate_batches(samples, order, **reading._asdict())
  return _reported(batches)


def eval_batches(
  source: Source, transform: EvalTransform, *, share: Share, reading: Reading, form: Form = LABELLED
) -> Iterator[Batch]:
  """This process's rows of all batches of one evaluation; label PADDING marks padding.

  Yields:
    {"image": (rows, height, width, 3) uint8, "label": (rows,) int32}; of a source with `label_sets`
    also {"shown": (rows, classes) bool}, all classes that an image shows; of images with masks what
    `MaskedEvalSamples` says, without "clipped".

  Raises:
    DataError: on iteration, for an image that cannot be read, a label out of range, or if
      a worker process dies.
  """
  samples = form.eval_samples(source, transform, share)
  order = (range(first, first + share.rows) for first in range(0, len(samples), share.rows))
  batches = iterate_batches(samples, order, **reading._asdict())
  return _reported(batches)


def _reported(batches: Iterator[Batch]) -> Iterator[Batch]:
  """The batches, with a warning that names the first clipped image; closing this closes them."""
  named = False
  try:
    for batch in batches:
      clipped = batch.pop("clipped")  # a worker cannot know what others have said
      if not named and clipped.any():
        warn_of_clipping(str(clipped[clipped != ""][0]))
        named = True
      yield batch
  except UserError as error:
    raise DataError(str(error)) from error
  finally:
    batches.close()


def check_fills_a_batch(
  source: Source, batch_size: int, advice: str = "choose a smaller data.batch_size"
) -> None:
  """Raises UserError, with an advice, if a source holds fewer records than a global batch."""
  if len(source) < batch_size:
    raise UserError(
      f"the training split holds {len(source)} images, fewer than one batch of {batch_size}; "
      f"{advice}"
    )


def check_bad_fraction(bad: int, seen: int, source: Source, max_bad_fraction: float) -> None:
  """Stops a run whose data is too bad.

  The allowed number is max_bad_fraction of the samples seen or, before the end of the
  first epoch, of the source: one bad image at the start of a large data set is no reason
  to stop, but in a small one it is.

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
      f"{len(source)} images; repair the data or raise data.max_bad_fraction"
    )
