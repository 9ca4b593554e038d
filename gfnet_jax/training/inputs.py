"""Where a run's images come from, and how many steps they make."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax
import ml_collections

from gfnet_jax.data.erasing_boxes import Erasing
from gfnet_jax.data.pipeline import Batch, Reading, check_fills_a_batch, train_batches
from gfnet_jax.data.samples import Share, check_form, try_transforms
from gfnet_jax.data.segmentation.transforms import MaskedEvalTransform, MaskedTrainTransform
from gfnet_jax.data.sources.fingerprint import fingerprint
from gfnet_jax.data.sources.open import (
  check_classes,
  check_same_classes,
  in_class_order,
  open_source,
)
from gfnet_jax.data.sources.records import Source
from gfnet_jax.data.transforms import EvalTransform, TrainTransform
from gfnet_jax.inference.evaluate import task_of
from gfnet_jax.training.choices import advise_batch, choose_from_data
from gfnet_jax.training.optimizer import Schedule, make_schedule
from gfnet_jax.training.tasks import learning_of


class Inputs(NamedTuple):
  """The data of a run.

  Attributes:
    train_source: of the training images.
    eval_source: of the evaluation's.
    train_transform: augments a training image.
    eval_transform: crops or resizes an image of the evaluation.
    reading: how both are read.
    fingerprints: of the images, "train" and "eval"; see `fingerprint`.
    steps_per_epoch: global batches in the training images, with a fraction.
    num_steps: of the whole run.
    schedule: the learning rate of every step.
  """

  train_source: Source
  eval_source: Source
  train_transform: TrainTransform | MaskedTrainTransform
  eval_transform: EvalTransform | MaskedEvalTransform
  reading: Reading
  fingerprints: dict[str, Any]
  steps_per_epoch: float
  num_steps: int
  schedule: Schedule


def open_inputs(
  config: ml_collections.ConfigDict, class_names: list[str] | None = None, devices: int = 1
) -> Inputs:
  """Opens the data; counts the classes for `model.num_classes` if that is 0.

  What an automatic config leaves open is filled in; see `choices`.

  Args:
    config: of the run.
    class_names: in the order of the labels so far, if the run is continued.
    devices: over which a batch is split.

  Raises:
    UserError: if the data cannot be read, or is not for this model, its image size and
      the batch size.
  """
  data, model = config.data, config.model
  train_source = open_source(data, data.train_split)
  eval_source = open_source(data, data.eval_split)
  task = task_of(model)
  check_form(train_source, task.form)
  fingerprints = {"train": fingerprint(train_source), "eval": fingerprint(eval_source)}
  train_source = in_class_order(train_source, class_names or train_source.class_names)
  eval_source = in_class_order(eval_source, train_source.class_names)
  if model.num_classes == 0:
    model.num_classes = len(train_source.class_names)
  check_classes(train_source, model.num_classes)
  check_same_classes(eval_source.class_names, train_source.class_names, data.eval_split)
  if data.get("test_split"):
    _check_test_split(data, train_source.class_names)
  images = len(train_source)
  choose_from_data(config, images, devices)
  check_fills_a_batch(train_source, data.batch_size, advise_batch(config, images, devices))
  train_transform = learning_of(model).make_train_transform(config)
  eval_transform = task.make_transform(model)
  try_transforms(train_source, train_transform, eval_source, eval_transform, task.form)
  steps_per_epoch = images / data.batch_size
  return Inputs(
    train_source,
    eval_source,
    train_transform,
    eval_transform,
    Reading(**data.reading),
    fingerprints,
    steps_per_epoch,
    num_steps=max(1, round(config.num_epochs * steps_per_epoch)),
    schedule=make_schedule(config, steps_per_epoch),
  )


def _check_test_split(data: ml_collections.ConfigDict, class_names: list[str]) -> None:
  """Opens the split of the final test, and reads none of its images: now mistakes cost nothing.

  Raises:
    UserError: if it cannot be opened, or has other classes.
  """
  test_source = in_class_order(open_source(data, data.test_split), class_names)
  check_same_classes(test_source.class_names, class_names, data.test_split)


def batches_from(
  config: ml_collections.ConfigDict, inputs: Inputs, first: int, skipped: Collection[int]
) -> Iterator[Batch]:
  """This process's rows of the run's global batches, from an index on; see `train_batches`.

  Args:
    config: of the run.
    inputs: its data.
    first: index of the first batch.
    skipped: indices of batches that are left out.
  """
  return train_batches(
    inputs.train_source,
    inputs.train_transform,
    seed=config.seed,
    share=Share(config.data.batch_size, jax.process_index(), jax.process_count()),
    first_batch=first,
    num_batches=inputs.num_steps + len(skipped),
    skipped=skipped,
    reading=inputs.reading,
    repeats=config.data.repeats,
    erasing=Erasing(**config.erasing),
    form=task_of(config.model).form,
  )
