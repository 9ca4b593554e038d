"""The state of a run, and the training step that is compiled for all devices of a mesh."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from gfnet_jax.models.functional import Params
from gfnet_jax.sharding import Batch, replicated, split_batch
from gfnet_jax.training import metrics
from gfnet_jax.training.objective import Objective, trained_params


@flax.struct.dataclass
class TrainState:
  """All that changes from step to step.

  Attributes:
    step: number of steps done, int32.
    params: by dotted name, float32 or float64.
    ema: moving averages of the parameters; {} if none are wanted.
    optimizer: state of the optimiser, for the parameters that are trained.
    metrics: sums and counts since the last line of metrics.
    bad_steps: number of steps that were skipped as not finite, int32.
    frozen: 0; or why nothing changes any more: 1 for a loss that was not finite, 2 for a
      gradient, int32.
    bad_samples: number of images that could not be read and were replaced, int32.
  """

  step: jax.Array
  params: Params
  ema: Params
  optimizer: optax.OptState
  metrics: metrics.Metrics
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
    optimizer=optimizer.init(trained_params(params, config)),
    metrics=metrics.empty(params),
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

  Call it under `jax.set_mesh(mesh)`: the filter shards its transforms over the mesh.
  The old state is donated. Randomness depends on the seed and the number of the step
  alone. A step whose loss or gradient is not finite changes no parameter. It is counted
  if `on_nonfinite` is "skip"; else nothing changes any more, so that the loop finds the
  state as it was before.

  Args:
    objective: of `make_objective`.
    optimizer: of `make_optimizer`.
    config: of the run; uses seed, freeze_trunk, ema_decay and on_nonfinite.
    mesh: of `make_mesh`.
    shardings: of the state, from `shard_state`.
  """
  whole, skip = replicated(mesh), config.on_nonfinite == "skip"
  trained_shardings = trained_params(shardings.params, config)

  def train_step(
    state: TrainState, teacher_params: Params, batch: Batch, learning_rate: jax.Array
  ) -> TrainState:
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    params = jax.lax.with_sharding_constraint(state.params, whole)  # gathered once if sharded
    loss, gradients, logits, labels, statistics = objective(params, teacher_params, batch, key)
    gradients = jax.lax.with_sharding_constraint(gradients, trained_shardings)
    norm = optax.tree.norm(gradients)
    trained = trained_params(state.params, config)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, trained)
    trained = jax.tree.map(lambda p, u: p - learning_rate * u, trained, updates)
    outcome = metrics.Outcome(loss, logits, labels, state.params, gradients, norm, updates)
    why = jnp.where(jnp.isfinite(loss), jnp.where(jnp.isfinite(norm), 0, 2), 1)
    after = TrainState(
      step=state.step + 1,
      params=state.params | trained | statistics,
      ema=average(state.ema, trained | statistics, config.ema_decay),
      optimizer=optimizer_state,
      metrics=metrics.update(state.metrics, outcome),
      bad_steps=state.bad_steps,
      frozen=state.frozen,
      bad_samples=state.bad_samples + batch["bad"].sum(dtype=jnp.int32),
    )
    return _unless_bad(state, after, why, skip=skip)

  return jax.jit(
    train_step,
    in_shardings=(shardings, whole, split_batch(mesh), whole),
    out_shardings=shardings,
    donate_argnums=0,
  )


def _unless_bad(state: TrainState, after: TrainState, why: jax.Array, *, skip: bool) -> TrainState:
  """The state after a step, or the one before it if there is a reason why not; see `TrainState`."""
  good = (why == 0) & (state.frozen == 0)
  # With 64 bits, a sum of int32 would be int64.
  after = jax.tree.map(lambda new, old: jnp.where(good, new.astype(old.dtype), old), after, state)
  if skip:
    return after.replace(step=state.step + 1, bad_steps=state.bad_steps + (why > 0))
  return after.replace(frozen=jnp.where(state.frozen == 0, why, state.frozen))


def average(ema: Params, params: Params, decay: float) -> Params:
  """The averages, moved towards the trained parameters (official: timm's ModelEma)."""
  return ema | {
    name: ema[name] * decay + (1 - decay) * params[name] for name in ema if name in params
  }
