"""Numerical precision of the matrix products, by name."""

import contextlib

import jax
import jax.numpy as jnp

from gfnet_jax.errors import UserError

PRECISIONS = ("highest", "default", "bf16")


def compute_dtype(precision: str) -> jnp.dtype:
  """The type of the arrays that enter matrix products.

  Args:
    precision: "highest" for float32 products everywhere (parity runs), "default" for
      float32 arrays with the platform's fast products (TF32 on GPU, bfloat16 on TPU),
      "bf16" for bfloat16 arrays between float32 parameters, norms, filters and losses.

  Raises:
    UserError: for another name.
  """
  if precision not in PRECISIONS:
    raise UserError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
  return jnp.dtype(jnp.bfloat16 if precision == "bf16" else jnp.float32)


def matmul_precision(precision: str) -> contextlib.AbstractContextManager:
  """Holds while programs are traced: "highest" has no product rounded below float32."""
  if precision == "highest":
    return jax.default_matmul_precision("highest")
  return contextlib.nullcontext()
