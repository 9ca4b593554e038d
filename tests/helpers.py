"""What several test files share: real processes of the scripts, and reading what they leave."""

import functools
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from fork_server import Script

from gfnet_jax.models.functional import Params, merge, split

ROOT = Path(__file__).parent.parent
HANGS = 1800.0  # seconds after which a process is taken for one that hangs, on any machine
# A flag of XLA, with which compiling takes twice as long; from jax 0.11 on it may be always on.
FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"
CAN_DO_WITHOUT = jax.__version_info__ < (0, 11)


def finish(processes: list[Script]) -> list[tuple[int, str, str]]:
  """(exit code, standard output, standard error) of every process."""
  outputs = [process.communicate(timeout=HANGS) for process in processes]
  return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def wait_for_line(process: Script, start: str) -> None:
  """Reads the output of a process up to a line."""
  for line in process.stdout:
    if line.startswith(start):
      return
  raise AssertionError(f"no line begins with {start!r}: {process.stderr.read()}")


def free_port() -> int:
  """A port of this machine that nobody listens on."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def script_command(name: str, *arguments) -> list[str]:
  return [sys.executable, name, *map(str, arguments)]


def script_environment(devices: int = 1, *, fusion_emitters: bool = False) -> dict[str, str]:
  """With fusion emitters, the bits of a row do not depend on how many rows there are."""
  flags = f"--xla_force_host_platform_device_count={devices}"
  quick = CAN_DO_WITHOUT and "JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ
  if quick and not fusion_emitters:
    flags += f" --{FUSION_EMITTERS}=false"
  return os.environ | {"XLA_FLAGS": flags}


def read_lines(path: Path) -> list[dict]:
  """The lines of a .jsonl file."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def compiled(model: nnx.Module, method: str = "__call__") -> Callable:
  """A method of a model as one program; eagerly, every operation is compiled by itself.

  Models of one structure share their programs: what a test patches must not be in them.
  """
  structure, params = split(model)

  def call(params: Params, *args, **kwargs) -> jax.Array:
    return _call(structure, method, params, *args, **kwargs)

  return functools.partial(call, params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _call(structure: nnx.GraphDef, method: str, params: Params, *args, **kwargs) -> jax.Array:
  return getattr(merge(structure, params), method)(*args, **kwargs)


def random_params(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
  """Parameters, or tensors of a state dict, from N(0, 1)."""
  rng = np.random.default_rng(seed)
  return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def random_model(make: Callable[[], nnx.Module], scale: float = 1.0) -> nnx.Module:
  """A model with random parameters, without compiling its initialisers.

  Args:
    scale: of the random numbers; to those that are factors, 1 is added.
  """
  structure, shapes = split(nnx.eval_shape(make))
  arrays = random_params({name: shape.shape for name, shape in shapes.items()})
  for name, array in arrays.items():
    array *= scale
    array += name.endswith((".scale", ".gamma"))
  return merge(structure, {name: jnp.asarray(array) for name, array in arrays.items()})


def collectives(hlo: str) -> dict[str, list[str]]:
  """The shapes that each kind of collective works on, such as {"all-reduce": ["f32[16,8]"]}."""
  found = {}
  for line in hlo.splitlines():
    match = re.search(
      r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(",
      line,
    )
    if match:
      found.setdefault(match[2], []).extend(re.findall(r"\w+\[[\d,]*\]", match[1]))
  return found
