"""What an evaluation does otherwise for networks that classify images or segment them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gfnet_jax.data.samples import Form
from gfnet_jax.inference.metrics import Metric


class Task(NamedTuple):
  """The seam between the loop or an evaluation and what a network is for.

  There are two: `classification.CLASSIFICATION` and `segmentation.SEGMENTATION`.

  Attributes:
    form: of the samples.
    make_transform: arguments of `create_model` to the transform of an evaluation; for
      classification also `whole`, of `EvalTransform`.
    make_step: (structure, mesh, outputs) to a compiled step of it, (params, batch) to counts; see
      `classification.make_eval_step`.
    make_judging_step: likewise, to one that remembers what a report needs.
    summarize: counts of all batches to the results by name.
    write_report: (directory, judging step, source, saved model, class names); writes the files of
      a report, and says so.
    metrics: by name; the part of the results that averaged weights have as well.
  """

  form: Form
  make_transform: Callable[[Mapping[str, Any]], Any]
  make_step: Callable[..., Callable]
  make_judging_step: Callable[..., Any]
  summarize: Callable[[list], dict[str, float | int]]
  write_report: Callable[..., None]
  metrics: Mapping[str, Metric]
