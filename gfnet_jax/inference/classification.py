"""Evaluates networks that give every image a class."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from gfnet_jax.data.samples import LABELLED
from gfnet_jax.data.sources.records import Source
from gfnet_jax.data.transforms import EvalTransform
from gfnet_jax.inference.attacks import Attack
from gfnet_jax.inference.metrics import METRICS, Averages, measure, summarize
from gfnet_jax.inference.report import write_report
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.inference.task import Task
from gfnet_jax.inference.verdicts import JudgingStep, NumberedStep, compute_logits
from gfnet_jax.models.functional import Params
from gfnet_jax.sharding import Batch, replicated, split_batch


def make_eval_step(
  structure: nnx.GraphDef,
  mesh: Mesh,
  outputs: tuple[int, ...] | None = None,
  attack: Attack | None = None,
) -> Callable[[Params, Batch], Averages]:
  """Compiles eval_step(params, batch) -> metrics of the batch, as `metrics.measure`.

  Call it under `jax.set_mesh(mesh)`: the filter shards its transforms over the mesh.

  Args:
    structure: of the model.
    mesh: of `make_mesh`.
    outputs: as for `compute_logits`.
    attack: as for `compute_logits`; the step then takes the batches of one evaluation in order.
  """

  def eval_step(params: Params, batch: Batch) -> Averages:
    logits = compute_logits(structure, params, batch, outputs, attack)
    return measure(logits, batch["label"], batch.get("shown"))

  whole = replicated(mesh)
  step = jax.jit(eval_step, in_shardings=(whole, split_batch(mesh)), out_shardings=whole)
  return step if attack is None else NumberedStep(step, mesh)


def _make_transform(model: Mapping[str, Any], *, whole: bool = False) -> EvalTransform:
  return EvalTransform(model.get("image_size", 224), whole=whole)


def _write_report(
  directory: Path, judging: JudgingStep, source: Source, saved: SavedModel, names: Sequence[str]
) -> None:
  del saved
  write_report(directory, judging.verdicts(), source, names)


CLASSIFICATION = Task(
  form=LABELLED,
  make_transform=_make_transform,
  make_step=make_eval_step,
  make_judging_step=JudgingStep,
  summarize=summarize,
  write_report=_write_report,
  metrics=METRICS,
)
