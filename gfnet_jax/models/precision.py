"""Named precisions of matrix products."""

import contextlib

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gfnet_jax.errors import UserError
from gfnet_jax.models.arguments import check_dtype
from gfnet_jax.models.platform import multiplies
from gfnet_jax.models.products import sum_type

PRECISIONS = ("highest", "default", "bf16", "float64")
FILTER_PRECISIONS = ("high", "highest", "default")


def compute_dtype(precision: str) -> jnp.dtype:
  """Returns the type of the arrays that enter matrix products.

  Args:
    precision: "highest" for true float32 products everywhere (parity runs), "default"
      for float32 arrays and the platform's fast products (TF32 on GPU, bfloat16 on TPU),
      "bf16" for bfloat16 arrays; parameters, norms, filters and losses stay float32.
      "float64" for everything in float64, for which JAX has to allow 64 bits.

  Raises:
    UserError: for another name, or float64 where JAX would make float32 of it.
  """
  if precision not in PRECISIONS:
    raise UserError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
  dtype = jnp.dtype({"bf16": jnp.bfloat16, "float64": jnp.float64}.get(precision, jnp.float32))
  check_dtype(dtype)
  return dtype


def parameter_dtype(precision: str) -> jnp.dtype:
  """Returns the type of parameters, normalised images and losses: float32, or float64 for that.

  Raises:
    UserError: as `compute_dtype`.
  """
  return sum_type(compute_dtype(precision))


def matmul_precision(precision: str) -> contextlib.AbstractContextManager:
  """A context in which to trace programs; "highest" rounds no product below float32."""
  if precision == "highest":
    return jax.default_matmul_precision("highest")
  return contextlib.nullcontext()


def filter_precision(
  name: str, platform: str, dtype: DTypeLike = jnp.float32
) -> jax.lax.PrecisionLike:
  """Returns the precision of the matrix products by which a filter transforms.

  Args:
    name: "high" for a relative error below 2e-5 (three bfloat16 passes on a TPU or a GPU that
      has bfloat16, float32 elsewhere), "highest" for float32 everywhere (by the backend
      "fused", which knows no more than three passes, as "high"), "default" for the platform's
      fastest (one bfloat16 pass on a TPU, with an error of up to 1e-2; TF32 on a GPU, with
      1e-3). In a context of `matmul_precision("highest")`, all are "highest".
    platform: see `platform_of`.
    dtype: of the computation; products of float64 have one precision.

  Raises:
    UserError: for another name.
  """
  check_filter_precision(name)
  highest = jax.config.jax_default_matmul_precision in ("highest", "float32")
  if highest or dtype == jnp.float64:
    return jax.lax.Precision.HIGHEST
  if name != "high" or platform == "tpu":
    return jax.lax.Precision[name.upper()]
  # HIGH would mean TF32 on a GPU, where exports that are traced for a CPU may go, too.
  if platform == "gpu" and multiplies(jnp.bfloat16, platform):
    return jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3
  return jax.lax.Precision.HIGHEST


def check_filter_precision(name: str) -> None:
  """Raises UserError for an unknown name."""
  if name not in FILTER_PRECISIONS:
    raise UserError(
      f"the precision of a filter is {name!r}, expected one of {', '.join(FILTER_PRECISIONS)}"
    )
