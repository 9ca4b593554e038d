"""The samples of a run: augmentation, replacement of bad images, padding of an evaluation.

Each is a pure function of the seed and of its place in the run, never of workers, threads or
processes. Worker processes import what is here and need neither jax nor Grain for it.
"""

import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gfnet_jax.data.decode import BadImageError, is_clipped, load_rgb, open_image
from gfnet_jax.data.erasing_boxes import Erasing, draw_erasing_boxes
from gfnet_jax.data.sources.records import BadRecordError, Record, Source
from gfnet_jax.data.transforms import EvalTransform, TrainTransform
from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

logger = logging.getLogger(__name__)
PADDING = -1  # the label of the images that fill up the last batch of an evaluation
REPLACEMENTS = 100  # tried for an unreadable image before the data set is given up


class Share(NamedTuple):
  """The rows of every global batch that one process reads: contiguous, equally many for all.

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
    """Rows of a batch that this process reads."""
    return self.batch_size // self.process_count

  def batch_and_row(self, i: int) -> tuple[int, int]:
    """The global batch that holds the i-th sample of this process, and its row there."""
    batch, row = divmod(i, self.rows)
    return batch, self.process_index * self.rows + row


class Place(NamedTuple):
  """What a sample to train on is made from.

  Attributes:
    epoch: from 0.
    index: of the image in the source.
    repetition: which one it is of those of the epoch that show the image, from 0.
  """

  epoch: int
  index: int
  repetition: int


class Form(NamedTuple):
  """How the records of a source become samples: those of images with a label, or with a mask.

  Attributes:
    load: (source, index, transform) to a sample, as `load_labelled`; a function of a module, as
      worker processes need it.
    eval_samples: (source, transform, share) to the samples of an evaluation, as `EvalSamples`.
    has_masks: whether the records have masks.
  """

  load: Callable[[Source, int, Callable], dict[str, Any]]
  eval_samples: Callable[[Source, Any, Share], Any]
  has_masks: bool


class TrainSamples:
  """Augmented samples to train on, by their `Place`.

  A sample is a row of the batches of `pipeline.train_batches`, and "clipped" of `load_labelled`.

  Args:
    source: the images.
    transform: from an opened image and a generator to (height, width, 3), uint8.
    seed: of all draws.
    erasing: the boxes to draw for random erasing.
    form: of the samples; None for `LABELLED`.
  """

  def __init__(
    self,
    source: Source,
    transform: TrainTransform,
    *,
    seed: int,
    erasing: Erasing,
    form: Form | None = None,
  ):
    self._load = (form or LABELLED).load
    self._source, self._transform, self._seed, self._erasing = source, transform, seed, erasing

  def __getitem__(self, place: Place) -> dict:
    epoch, index, repetition = place
    for bad, candidate in enumerate(self._candidates(index)):
      rng = sample_rng(self._seed, epoch, index, repetition)
      try:
        return {**self._sample(candidate, rng), "bad": np.bool_(bad)}
      except BadRecordError as error:
        reason = printable(error, limit=1000)
        logger.warning("training image %d is replaced: %s", candidate, reason)
    raise UserError(
      f"training image {index} and {REPLACEMENTS} others cannot be read (see the warnings above); "
      "check the data set"
    )

  def _sample(self, index: int, rng: random.Random) -> dict:
    sample = self._load(self._source, index, lambda *opened: self._transform(*opened, rng))
    probability, max_count, _ = self._erasing
    if probability:
      size = sample["image"].shape[:2]
      sample["erase"] = draw_erasing_boxes(size, rng, probability=probability, max_count=max_count)
    return sample

  def _candidates(self, index: int) -> Iterator[int]:
    """The index itself, then its replacements: the same in every process and epoch."""
    yield index
    rng = np.random.default_rng([self._seed, index])
    for _ in range(REPLACEMENTS):
      yield int(rng.integers(len(self._source)))


class EvalSamples:
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
      return {"image": blank, "label": np.int32(PADDING), "clipped": np.str_()} | self._shown(())
    try:
      record = self._source[index]
      sample = _labelled(self._source, record, lambda image: self._transform(load_rgb(image)))
      return sample | self._shown(record.shown)
    except BadRecordError as error:
      # Neither left out nor replaced: that would be another test than the one asked for.
      raise UserError(f"evaluation image {index}: {error}; repair or remove it") from error

  def _shown(self, labels: tuple[int, ...]) -> dict:
    """All classes that an image shows, if the source tells: (classes,), bool."""
    if not getattr(self._source, "label_sets", False):
      return {}
    return {"shown": np.isin(np.arange(len(self._source.class_names)), labels)}


def load_labelled(
  source: Source, index: int, transform: Callable[[Image.Image], np.ndarray]
) -> dict[str, Any]:
  """One record as a sample; "clipped" is its name if decoding clips its values, else "".

  Raises:
    BadRecordError: if it cannot be read or decoded, with its name.
    UserError: if its label is out of range, or the transform does not take it.
  """
  return _labelled(source, source[index], transform)


def _labelled(
  source: Source, record: Record, transform: Callable[[Image.Image], np.ndarray]
) -> dict[str, Any]:
  for label in (record.label, *record.shown):
    if not 0 <= label < len(source.class_names):
      raise UserError(
        f"{record.name} has the label {label}, expected 0 to {len(source.class_names) - 1}; "
        "correct the data set"
      )
  try:
    image = open_image(record.image)
    clipped = np.str_(record.name if is_clipped(image) else "")
    return {"image": transform(image), "label": np.int32(record.label), "clipped": clipped}
  except BadImageError as error:
    raise BadRecordError(f"{record.name} is {error}") from error
  except UserError as error:
    raise UserError(f"{record.name}: {error}") from error


LABELLED = Form(load_labelled, EvalSamples, has_masks=False)


def check_form(source: Source, form: Form) -> None:
  """Raises UserError for records with masks where others are expected, and the other way round."""
  if hasattr(source, "first_value") != form.has_masks:
    found, expected = "no masks", "a network that classifies images (no model.decoder)"
    if not form.has_masks:
      found, expected = "masks", "a network that segments them (model.decoder='semantic-fpn')"
    raise UserError(f"the images of the data set have {found}, which are for {expected}")


def try_transforms(
  train: Source,
  train_transform: TrainTransform,
  evaluation: Source,
  eval_transform: EvalTransform,
  form: Form = LABELLED,
) -> None:
  """Puts the first image of either split through its transform.

  Raises:
    UserError: if that cannot be done, which would otherwise show at the first evaluation.
  """
  with contextlib.suppress(BadRecordError):  # training replaces it
    form.load(train, 0, lambda *opened: train_transform(*opened, random.Random(0)))
  form.eval_samples(evaluation, eval_transform, Share(1))[0]


def sample_rng(seed: int, epoch: int, index: int, repetition: int = 0) -> random.Random:
  """The generator of one sample's augmentation."""
  words = np.random.SeedSequence([seed, epoch, index, repetition]).generate_state(2, np.uint64)
  return random.Random(int(words[0]) << 64 | int(words[1]))
