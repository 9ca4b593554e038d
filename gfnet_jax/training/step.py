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
from gfnet_jax.models.functional import Params, merge
from gfnet_jax.training.metrics import EvalMetrics, TrainMetrics, eval_metrics
from gfnet_jax.training.objective import Batch, Objective
from gfnet_jax.training.sharding import replicated, split_batch


@flax.struct.dataclass
class TrainState:
  """All that changes from step to step.

  Attributes:
    step: number of steps done, int32.
    params: by dotted name, float32.
    ema: moving averages of the parameters; {} if none are wanted.
    optimizer: state of the optimiser.
    metrics: means since the last line of metrics.
    bad_steps: number of steps that were skipped as not finite, int32.
    frozen: 0; or why nothing changes any more: 1 for a loss that was not finite, 2 for a
      gradient, int32.
    bad_samples: number of images that could not be read and were replaced, int32.
  """

  step: jax.Array
  params: Params
  ema: Params
  optimizer: optax.OptState
  metrics: TrainMetrics
  bad_steps: jax.Array
  frozen: jax.Array
  bad_samples: jax.Array


def init_state(
  params: Params, optimizer: optax.GradientTransformation, config: ml_collections.ConfigDict
) -> TrainState:
  """A fresh state around the given parameters; to be jitted."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema=params if config.ema_decay else {},
    optimizer=optimizer.init(params),
    metrics=TrainMetrics.empty(),
    bad_steps=jnp.zeros((), jnp.int32),
    frozen=jnp.zeros((), jnp.int32),
    bad_samples=jnp.zeros((), jnp.int32),
  )


def make_train_step(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  config: ml_collections.ConfigDict,
  mesh: Mesh,
  shardings: TrainState,
) -> Callable[[TrainState, Params, Batch, float], TrainState]:
  """Compiles train_step(state, teacher_params, batch, learning_rate) -> state.

  The old state is donated. Randomness depends on the seed and the number of the step
  alone. A step whose loss or gradient is not finite changes no parameter. It is counted
  if `on_nonfinite` is "skip"; else nothing changes any more, so that the loop finds the
  state as it was before.

  Args:
    objective: of `make_objective`.
    optimizer: of `make_optimizer`.
    config: of the run; uses seed, ema_decay and on_nonfinite.
    mesh: of `make_mesh`.
    shardings: of the state, from `shard_state`.
  """
  whole, skip = replicated(mesh), config.on_nonfinite == "skip"

  def train_step(
    state: TrainState, teacher_params: Params, batch: Batch, learning_rate: jax.Array
  ) -> TrainState:
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    params = jax.lax.with_sharding_constraint(state.params, whole)  # gathered once if sharded
    loss, gradients, logits = objective(params, teacher_params, batch, key)
    gradients = jax.lax.with_sharding_constraint(gradients, shardings.params)
    norm = optax.tree.norm(gradients)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
    metrics = TrainMetrics.single_from_model_output(
      loss=loss,
      accuracy=(logits.argmax(-1) == batch["label"]).astype(jnp.float32),
      gradient_norm=norm,
    )
    why = jnp.where(jnp.isfinite(loss), jnp.where(jnp.isfinite(norm), 0, 2), 1)
    after = TrainState(
      step=state.step + 1,
      params=params,
      ema=average(state.ema, params, config.ema_decay),
      optimizer=optimizer_state,
      metrics=state.metrics.merge(metrics),
      bad_steps=state.bad_steps,
      frozen=state.frozen,
      bad_samples=state.bad_samples + batch["bad"].sum(dtype=jnp.int32),
    )
    good = (why == 0) & (state.frozen == 0)
    after = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, state)
    if skip:
      return after.replace(step=state.step + 1, bad_steps=state.bad_steps + (why > 0))
    return after.replace(frozen=jnp.where(state.frozen == 0, why, state.frozen))

  return jax.jit(
    train_step,
    in_shardings=(shardings, whole, split_batch(mesh), whole),
    out_shardings=shardings,
    donate_argnums=0,
  )


def average(ema: Params, params: Params, decay: float) -> Params:
  """Moves the averages towards the parameters (official: timm's ModelEma)."""
  return {name: ema[name] * decay + (1 - decay) * params[name] for name in ema}


def make_eval_step(structure: nnx.GraphDef, mesh: Mesh) -> Callable[[Params, Batch], EvalMetrics]:
  """Compiles eval_step(params, batch) -> metrics of the batch."""

  def eval_step(params: Params, batch: Batch) -> EvalMetrics:
    return eval_metrics(merge(structure, params)(normalize(batch["image"])), batch["label"])

  whole = replicated(mesh)
  return jax.jit(eval_step, in_shardings=(whole, split_batch(mesh)), out_shardings=whole)
