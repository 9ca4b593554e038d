"""Which kind of device a computation is compiled for, while it is traced."""

import functools
import re
from pathlib import Path

import jax


def platform_of(x: jax.Array) -> str:
  """The platform, "cpu", "gpu" or "tpu", for which a function of x is traced or run.

  It is that of the mesh of x if x has an explicit sharding, or of `jax.set_mesh`; for want
  of a mesh, that of `jax.default_device`. A mesh may be of devices that this machine lacks,
  as in compiling ahead (tools/compile_ahead.py). Where an array happens to be is not asked: a
  function that is traced does not know it.

  Args:
    x: of any shape and type.
  """
  for mesh in (jax.typeof(x).sharding.mesh, jax.sharding.get_abstract_mesh()):
    if mesh.abstract_device is not None:
      return _name(mesh.abstract_device.platform)
  default = jax.config.jax_default_device or jax.devices()[0]
  return _name(getattr(default, "platform", default))  # a device, or the name of a platform


def multiplies(dtype: jax.typing.DTypeLike, platform: str) -> bool:
  """Whether a platform has instructions for products of a type narrower than float32.

  A CPU is this machine's. On x86 they are AVX512_BF16 and AMX-BF16, for bfloat16 (Zen 4, Sapphire
  Rapids and later). A GPU is this machine's, too; one that it lacks, as in compiling ahead, is
  taken for a recent one.
  """
  if platform == "cpu":
    return dtype == jax.numpy.bfloat16 and _cpu_has_bfloat16_products()
  return platform != "gpu" or dtype != jax.numpy.bfloat16 or _gpu_has_bfloat16_products()


@functools.cache
def _gpu_has_bfloat16_products() -> bool:
  """NVIDIA's have since compute capability 8.0 (A100), AMD's since MI100 and RX 7000.

  XLA refuses the others what it would have to multiply so (`IsSupportedDotAlgorithmOnGpu`).
  """
  try:
    device = jax.local_devices(backend="gpu")[0]
  except RuntimeError:
    return True
  capability = getattr(device, "compute_capability", "")
  return bool(re.match(r"([89]|\d\d)\.|gfx(908|90a|94|95|11|12)", capability))


@functools.cache
def _cpu_has_bfloat16_products() -> bool:
  try:
    flags = re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
  except OSError:
    return False
  return bool(flags) and not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags[0].split())


def _name(platform: str) -> str:
  return "gpu" if platform in ("cuda", "rocm") else platform
