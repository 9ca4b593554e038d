"""Functions with a gradient of their own that forward mode can differentiate, too.

`jax.custom_vjp` refuses forward mode (`jax.jvp`, `jax.linearize`, `jax.hessian`), and
`jax.custom_derivatives.linear_call`, which allows it, neither `jax.vmap` nor the derivatives
of its residuals. This is as small as what allows all of them: a primitive, as in JAX's
tutorial "JAX internals: primitives".
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir, partial_eval

Arrays = tuple[jax.Array, ...]


def custom_gradient(
  forward: Callable[..., tuple[jax.Array, Arrays]],
  push_forward: Callable[[Arrays, Arrays], jax.Array],
  pull_back: Callable[[Arrays, jax.Array], Arrays],
) -> Callable[..., jax.Array]:
  """Makes a function of arrays whose derivatives are computed as given.

  Reverse mode keeps the residuals and calls `pull_back`; what it keeps and computes is
  what it would with `jax.custom_vjp`. Forward mode calls `push_forward`. Derivatives of
  these are JAX's own. Inside `jax.shard_map`, the gradient of an argument is summed over
  the axes over which the other arguments vary and it does not.

  Args:
    forward: maps the arguments to (value, residuals).
    push_forward: maps residuals, and a tangent of every argument, to the value's tangent.
    pull_back: its transpose: maps residuals, and a cotangent of the value, to a cotangent
      of every argument.
  """

  @jax.custom_jvp
  def function(*arguments):
    return forward(*arguments)[0]

  @function.defjvp
  def _(arguments, tangents):
    value, residuals = forward(*arguments)
    number = len(residuals)
    tangent = _linear_p.bind(
      *residuals,
      *tangents,
      push=lambda *inputs: push_forward(inputs[:number], inputs[number:]),
      pull=lambda *inputs: pull_back(inputs[:number], inputs[number]),
      number=number,
      result=jax.typeof(value),
    )
    return value, tangent

  return lambda *arguments: function(*_vary_alike(arguments))


def _vary_alike(arguments: Arrays) -> Arrays:
  """Marks all as varying over the same axes of `jax.shard_map`; the transpose is a sum."""
  varying = [jax.typeof(x).manual_axis_type.varying for x in arguments]
  union = frozenset().union(*varying)
  return tuple(
    jax.lax.pcast(x, tuple(sorted(union - own)), to="varying") if own < union else x
    for x, own in zip(arguments, varying, strict=True)
  )


_linear_p = Primitive("linear_with_transpose")  # residuals and tangents -> tangent


@_linear_p.def_impl
def _apply(*inputs: jax.Array, push: Callable[..., jax.Array], **_) -> jax.Array:
  return push(*inputs)


@_linear_p.def_abstract_eval
def _result_type(*inputs, result, **_):
  return result


def _jvp(primals, tangents, *, push, **_):
  return jax.jvp(push, primals, tuple(map(ad.instantiate_zeros, tangents)))


def _transpose(cotangent, *inputs, pull, number, **_):
  """The residuals, `number` of them, are known; a tangent may be, if it is zero.

  Only what is wanted is computed: not the gradients of parameters if it is that of the images.
  """
  wanted = list(map(ad.is_undefined_primal, inputs))
  arguments = (*inputs[:number], cotangent)
  closed = jax.make_jaxpr(pull)(*arguments)
  jaxpr, kept_constants, kept = partial_eval.dce_jaxpr_consts(closed.jaxpr, wanted[number:])
  constants = list(itertools.compress(closed.consts, kept_constants))
  function = jaxpr_as_fun(ClosedJaxpr(jaxpr, constants))
  cotangents = iter(function(*itertools.compress(arguments, kept)))
  return [next(cotangents) if each else None for each in wanted]


def _batch(inputs, axes, *, push, pull, number, **_):
  """Batches all tangents, so that none of their cotangents is a sum over the batch."""
  size = next(x.shape[a] for x, a in zip(inputs, axes, strict=True) if a is not None)
  tangents = [
    jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
    for x, axis in zip(inputs[number:], axes[number:], strict=True)
  ]
  inputs, axes = (*inputs[:number], *tangents), axes[:number]
  push, pull = jax.vmap(push, (*axes, *[0] * len(tangents))), jax.vmap(pull, (*axes, 0))
  (result,) = jax.make_jaxpr(push)(*inputs).out_avals
  return _linear_p.bind(*inputs, push=push, pull=pull, number=number, result=result), 0


ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
mlir.register_lowering(_linear_p, mlir.lower_fun(_apply, multiple_results=False))
