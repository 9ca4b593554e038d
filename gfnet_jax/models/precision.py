"""Named precisions of matrix products."""

import contextlib

import jax
import jax.numpy as jnp

from gfnet_jax.errors import UserError

PRECISIONS = ("highest", "default", "bf16")


def compute_dtype(precision: str) -> jnp.dtype:
  """Returns the type of the arrays that enter matrix products.

  Args:
    precision: "highest" for true float32 products everywhere (parity runs), "default"
      for float32 arrays and the platform's fast products (TF32 on GPU, bfloat16 on TPU),
      "bf16" for bfloat16 arrays; parameters, norms, filters and losses stay float32.

  Raises:
    UserError: for another name.
  """
  if precision not in PRECISIONS:
    raise UserError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
  return jnp.dtype(jnp.bfloat16 if precision == "bf16" else jnp.float32)


def matmul_precision(precision: str) -> contextlib.AbstractContextManager:
  """A context in which to trace programs; "highest" rounds no product below float32."""
  if precision == "highest":
    return jax.default_matmul_precision("highest")
  return contextlib.nullcontext()
