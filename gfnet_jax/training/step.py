"""One training step and one evaluation step, compiled for all devices of a mesh.

Call both under `jax.set_mesh(mesh)`: the filter shards its transforms over it.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh

from gfnet_jax.data.normalize import normalize
from gfnet_jax.models.functional import Params, merge, split
from gfnet_jax.training.losses import cross_entropy, smooth_one_hot
from gfnet_jax.training.metrics import EvalMetrics, TrainMetrics, eval_metrics
from gfnet_jax.training.sharding import replicated, split_batch

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
  """All that changes from step to step.

  Attributes:
    step: number of steps done, int32.
    params: by dotted name, float32.
    optimizer: state of the optimiser.
    metrics: means since the last line of metrics.
  """

  step: jax.Array
  params: Params
  optimizer: optax.OptState
  metrics: TrainMetrics


def init_state(
  make_model: Callable[[], nnx.Module], optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """A fresh state, replicated over the mesh."""

  def init() -> TrainState:
    _, params = split(make_model())
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      optimizer=optimizer.init(params),
      metrics=TrainMetrics.empty(),
    )

  return jax.jit(init, out_shardings=replicated(mesh))()


def make_train_step(
  structure: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  config: ml_collections.ConfigDict,
  mesh: Mesh,
) -> Callable[[TrainState, Batch, float], TrainState]:
  """Compiles train_step(state, batch, learning_rate) -> state; the old state is donated.

  Randomness depends on the seed and the number of the step alone.
  """
  num_classes, smoothing = config.model.num_classes, config.label_smoothing

  def train_step(state: TrainState, batch: Batch, learning_rate: jax.Array) -> TrainState:
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    images = normalize(batch["image"])
    targets = smooth_one_hot(batch["label"], num_classes, smoothing)

    def mean_loss(params: Params) -> tuple[jax.Array, jax.Array]:
      logits = merge(structure, params)(images, key=key)
      return cross_entropy(logits, targets).mean(), logits

    (loss, logits), gradients = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    metrics = TrainMetrics.single_from_model_output(
      loss=loss,
      accuracy=(logits.argmax(-1) == batch["label"]).astype(jnp.float32),
      gradient_norm=optax.tree.norm(gradients),
    )
    return TrainState(
      step=state.step + 1,
      params=jax.tree.map(lambda p, update: p - learning_rate * update, state.params, updates),
      optimizer=optimizer_state,
      metrics=state.metrics.merge(metrics),
    )

  whole = replicated(mesh)
  return jax.jit(
    train_step,
    in_shardings=(whole, split_batch(mesh), whole),
    out_shardings=whole,
    donate_argnums=0,
  )


def make_eval_step(structure: nnx.GraphDef, mesh: Mesh) -> Callable[[Params, Batch], EvalMetrics]:
  """Compiles eval_step(params, batch) -> metrics of the batch."""

  def eval_step(params: Params, batch: Batch) -> EvalMetrics:
    return eval_metrics(merge(structure, params)(normalize(batch["image"])), batch["label"])

  whole = replicated(mesh)
  return jax.jit(eval_step, in_shardings=(whole, split_batch(mesh)), out_shardings=whole)
