"""Numerical precision of the matrix products, by name."""

import jax
import jax.numpy as jnp

from gfnet_jax.errors import UserError

PRECISIONS = ("highest", "default", "bf16")


def compute_dtype(precision: str) -> jnp.dtype:
  """Sets the precision of this process and returns the type for matrix products.

  Args:
    precision: "highest" for float32 products everywhere (parity runs), "default" for
      float32 arrays with the platform's fast products (TF32 on GPU, bfloat16 on TPU),
      "bf16" for bfloat16 arrays between float32 parameters, norms, filters and losses.

  Raises:
    UserError: for another name.
  """
  if precision not in PRECISIONS:
    raise UserError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
  jax.config.update("jax_default_matmul_precision", "highest" if precision == "highest" else None)
  return jnp.dtype(jnp.bfloat16 if precision == "bf16" else jnp.float32)
