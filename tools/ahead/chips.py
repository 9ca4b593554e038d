"""The accelerators that programs can be compiled for, and their devices without any hardware.

Memory, bandwidth and peak of TPUs are from https://cloud.google.com/tpu/docs/v5e, /v5p and
/v6e; the clock of the v5e from https://jax-ml.github.io/scaling-book/tpus. Google publishes
no clock of the others that fits the compiler's cycles. A TPU v4 is left out: without
hardware the compiler sees its two cores as two devices, which they are not in jax.

What the compiler is told of a GPU is from XLA's own descriptions (openxla/xla,
xla/backends/gpu/target_config/specs).
"""

import importlib.metadata
import importlib.util
import math
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from gfnet_jax.errors import UserError
from gfnet_jax.names import look_up
from gfnet_jax.text import printable

if TYPE_CHECKING:
  import jax

# They must be set before jax is imported: it is not to look for devices, of which libtpu
# would otherwise ask the host and the network.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "JAX_COMPILATION_CACHE_DIR": "",  # or compile_s would be that of reading
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any will do: the topology names the chip
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # others may be compiling, too
}
QUIET = {"TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3", "TF_CPP_MIN_LOG_LEVEL": "3"}
GPUS_PER_HOST = 8


class Chip(NamedTuple):
  """An accelerator.

  Attributes:
    name: for people.
    arrangement: of several that exists, as --topology names it.
    memory: bytes.
    bandwidth: of the memory, bytes per second.
    flops: per second in bfloat16, the peak; None where nothing needs it.
    clock: cycles per second in which the compiler counts; None if it is not known.
    description: of a GPU, for XLA; "" for a TPU.
  """

  name: str
  arrangement: str
  memory: int
  bandwidth: float
  flops: float | None = None
  clock: float | None = None
  description: str = ""

  @property
  def usable(self) -> int:
    """The bytes that jax uses: a part of a GPU's memory, all of a TPU's.

    Raises:
      UserError: if XLA_PYTHON_CLIENT_MEM_FRACTION is no number.
    """
    if not self.description:
      return self.memory
    fraction = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or "0.75"  # jax's default
    try:
      return int(self.memory * float(fraction))
    except ValueError as error:
      raise UserError(
        f"XLA_PYTHON_CLIENT_MEM_FRACTION is {printable(fraction)!r}, expected a number such as 0.9"
      ) from error


def gpu(name: str, capability: int, *, memory: int, bandwidth: int, **sizes: int) -> Chip:
  """A GPU as XLA describes it; what these GPUs have in common is filled in."""
  fields = {
    **dict(threads_per_block_limit=1024, threads_per_warp=32, threads_per_core_limit=2048),
    **dict(block_dim_limit_x=2**31 - 1, block_dim_limit_y=65535, block_dim_limit_z=65535),
    **dict(registers_per_core_limit=65536, registers_per_block_limit=65536),
    **dict(shared_memory_per_block=49152, device_memory_size=memory, memory_bandwidth=bandwidth),
    **sizes,
  }
  info = " ".join(f"{field}: {value}" for field, value in fields.items())
  description = (
    f"gpu_device_info {{ {info} cuda_compute_capability {{ major: {capability} }} }} "
    'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 } '
    f'device_description_str: "{name}"'
  )
  return Chip(name, str(GPUS_PER_HOST), memory, bandwidth, description=description)


HOPPER = dict(
  **dict(core_count=132, fpus_per_core=128, clock_rate_ghz=1.98, l2_cache_size=52428800),
  **dict(shared_memory_per_core=233472, shared_memory_per_block_optin=232448),
)
AMPERE = dict(
  **dict(core_count=108, fpus_per_core=64, clock_rate_ghz=1.41, l2_cache_size=41943040),
  **dict(shared_memory_per_core=167936, shared_memory_per_block_optin=166912),
)
CHIPS = {
  "v5e": Chip("TPU v5e", "2x4", int(16e9), 819e9, flops=197e12, clock=1.5e9),
  "v5p": Chip("TPU v5p", "2x2x1", int(95e9), 2765e9, flops=459e12),
  "v6e": Chip("TPU v6e", "2x4", int(32e9), 1638e9, flops=918e12),
  "a100": gpu("NVIDIA A100-SXM4-80GB", 8, memory=85100068864, bandwidth=2039040000000, **AMPERE),
  "h100": gpu("NVIDIA H100 80GB HBM3", 9, memory=84942979072, bandwidth=3352320000000, **HOPPER),
  "h200": gpu("NVIDIA H200 141GB HBM3e", 9, memory=151397597184, bandwidth=4800000000000, **HOPPER),
}


def prepare_environment() -> None:
  """Keeps jax from looking for devices, and libraries from logging; before jax is imported."""
  os.environ.update(ENVIRONMENT)
  for name, value in QUIET.items():
    os.environ.setdefault(name, value)


def parse_topology(topology: str) -> tuple[Chip, tuple[int, ...]]:
  """The chip of "v5e:2x4" or "h100:8", and how many there are along every axis.

  Raises:
    UserError: for another form, an unknown chip, or one that is not arranged along so many axes.
  """
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
  sides = tuple(map(int, found[2].split("x"))) if found else ()
  if not all(sides) or not sides:
    raise UserError(
      f"--topology is {printable(topology)!r}, expected chips and how they are arranged, "
      "such as v5e:2x4 or h100:8"
    )
  chip = look_up("chip", found[1], CHIPS)
  if len(sides) != 1 + chip.arrangement.count("x"):
    kind = "a number of GPUs" if chip.description else "a number of chips along every axis"
    raise UserError(
      f"--topology is {topology!r}, expected {kind}, such as {found[1]}:{chip.arrangement}"
    )
  return chip, sides


def check_compiler(chip: Chip) -> None:
  """Raises UserError unless the compiler for a chip is installed; jax is not needed for that."""
  plugins = [plugin.name for plugin in importlib.metadata.entry_points(group="jax_plugins")]
  if chip.description and not any("cuda" in name for name in plugins):
    missing = "jax's CUDA plugin"
  elif not chip.description and importlib.util.find_spec("libtpu") is None:
    missing = "libtpu"
  else:
    return
  raise UserError(
    f"compiling for {chip.name} needs {missing}; pip install -r requirements-ahead.txt (with "
    "Python 3.11)"
  )


def chips_of(topology: str, chip: Chip, sides: tuple[int, ...]) -> "list[jax.Device]":
  """The devices of a topology, as jax would find them there.

  Raises:
    UserError: if the compiler knows no such arrangement.
  """
  import jax
  from jax.experimental import topologies

  count = math.prod(sides)
  if chip.description:
    if count > GPUS_PER_HOST and count % GPUS_PER_HOST:
      raise UserError(
        f"--topology is {topology!r}, expected up to {GPUS_PER_HOST} GPUs, or a multiple of them"
      )
    hosts = max(1, count // GPUS_PER_HOST)
    name = f"1x{hosts}x{count // hosts}"  # slices, hosts, GPUs of a host
    arguments = dict(platform="cuda", topology_name=name, topology=name)
    arguments |= dict(target_config=chip.description)
  else:
    arguments = dict(platform="tpu", topology_name=topology)
    if count == 1:
      arguments |= dict(chips_per_host_bounds=[1, 1, 1])
  try:
    return topologies.get_topology_desc(**arguments).devices
  except jax.errors.JaxRuntimeError as error:
    raise UserError(
      f"--topology is {topology!r}, expected an arrangement that the compiler knows, such as "
      f"{topology.partition(':')[0]}:{chip.arrangement} ({printable(error)})"
    ) from error
