"""Matrix products as a TPU or GPU computes them: float32 factors in passes of bfloat16."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal


def emulate(function: Callable, *arguments: jax.Array) -> list[jax.Array]:
  """The results of a function of arrays, flat, were its products computed so.

  Every product of float32 takes the passes that its precision asks for: one for DEFAULT, three for
  HIGH and BF16_BF16_F32_X3, six for HIGHEST.
  """
  closed = jax.make_jaxpr(function)(*arguments)
  return _run(closed, jax.tree.leaves(arguments))


def _run(closed: ClosedJaxpr, arguments: list[jax.Array]) -> list[jax.Array]:
  jaxpr = closed.jaxpr
  values = dict(zip(jaxpr.constvars + jaxpr.invars, [*closed.consts, *arguments], strict=True))

  def read(atom):
    return atom.val if isinstance(atom, Literal) else values[atom]

  for equation in jaxpr.eqns:
    inputs, name = list(map(read, equation.invars)), equation.primitive.name
    if name == "dot_general" and inputs[0].dtype == inputs[1].dtype == jnp.float32:
      outputs = [_multiply(*inputs, equation.params)]
    elif name != "reduce" and ("jaxpr" in equation.params or "call_jaxpr" in equation.params):
      inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
      outputs = _run(inner, inputs)
    else:
      outputs = equation.primitive.bind(*inputs, **equation.params)
      outputs = outputs if equation.primitive.multiple_results else [outputs]
    values.update(zip(equation.outvars, outputs, strict=True))
  return list(map(read, jaxpr.outvars))


def _multiply(a: jax.Array, b: jax.Array, params: dict) -> jax.Array:
  precision = params["precision"]
  precision = precision[0] if isinstance(precision, tuple) else precision
  known = {None: 0, "DEFAULT": 0, "HIGH": 1, "BF16_BF16_F32_X3": 1, "HIGHEST": 2}
  largest = known[precision and precision.name]

  def multiply(a, b):
    return jax.lax.dot_general(
      a, b, params["dimension_numbers"], preferred_element_type=jnp.float32
    )

  parts_of_a, parts_of_b = (_split(x, largest + 1) for x in (a, b))
  return sum(
    multiply(parts_of_a[i], parts_of_b[j])
    for i in range(largest + 1)
    for j in range(largest + 1 - i)
  )


def _split(x: jax.Array, number: int) -> list[jax.Array]:
  """Values of bfloat16, each what is left of x after those before it."""
  parts = []
  for _ in range(number):
    parts.append(x.astype(jnp.bfloat16).astype(jnp.float32))
    x = x - parts[-1]
  return parts
