"""Which kind of device a computation is compiled for, while it is traced."""

import jax

ACCELERATORS = ("gpu", "tpu")


def platform_of(x: jax.Array) -> str:
  """The platform, "cpu", "gpu" or "tpu", for which a function of x is traced or run.

  It is that of the mesh of x if x has an explicit sharding, or of `jax.set_mesh`; for want
  of a mesh, that of `jax.default_device`. A mesh may be of devices that this machine lacks,
  as in compiling ahead (tools/compile_ahead.py).

  Args:
    x: of any shape and type.
  """
  for mesh in (jax.typeof(x).sharding.mesh, jax.sharding.get_abstract_mesh()):
    if mesh.abstract_device is not None:
      return _name(mesh.abstract_device.platform)
  default = jax.config.jax_default_device or jax.devices()[0]
  return _name(getattr(default, "platform", default))  # a device, or the name of a platform


def _name(platform: str) -> str:
  return "gpu" if platform in ("cuda", "rocm") else platform
