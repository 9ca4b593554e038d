"""Pictures of the filters as training proceeds, for TensorBoard."""

import jax
from flax import nnx

from gfnet_jax.models.functional import merge, split
from gfnet_jax.training.run import Run
from gfnet_jax.training.step import TrainState
from gfnet_jax.training.writer import MetricWriter
from gfnet_jax.views.filters import by_stage, filter_layers
from gfnet_jax.views.mosaic import magnitudes, to_png

COLUMNS = 24  # channels, as in the figure of the paper


def write_filter_images(writer: MetricWriter, run: Run, state: TrainState, step: int) -> None:
  """Writes the effective magnitudes of each stage's filters; all processes take part."""
  params = run.program.gather(state.params)
  structure, _ = split(nnx.eval_shape(run.program.make_model))
  for layers in by_stage(filter_layers(merge(structure, params).trunk)):
    channels = list(range(min(COLUMNS, layers[0].kernel.shape[-1])))
    if jax.process_index() == 0:
      png, size = to_png(magnitudes(layers, channels))
      writer.write_image(step, f"filters/stage{layers[0].stage}", png, size)
