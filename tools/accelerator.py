"""Everything that is to be measured on an accelerator, in one call.

  python tools/accelerator.py docs/benchmarks/my-gpu

Correctness comes first, and where it fails nothing else is run. What else fails is left
out: the rest still runs, and the exit code is 2 at the end. Every part leaves NAME.json, and
NAME.txt with all that it said, in the directory:

  correctness   logits, filters and a repeated run (tools/benchmark.py correctness)
  backends      the filter's; writes the measurements from which backend="auto" chooses
  step          the training and the evaluation step of every network, in bf16 and float32
  torch         beside PyTorch: eager, under autocast and compiled; where it has the device
  models        the networks alone
  layer         token mixing layers alone
  profile       of some training steps, for TensorBoard or Perfetto
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project need not be installed

from gfnet_jax.command_line import ArgumentParser, run
from gfnet_jax.errors import UserError
from gfnet_jax.files import make_directory
from gfnet_jax.text import printable

ROOT = Path(__file__).parent.parent
BENCHMARK = (sys.executable, str(ROOT / "tools/benchmark.py"))
KINDS = ("correctness", "backends", "step", "torch", "models", "layer", "profile")
MODELS = ("gfnet-ti", "gfnet-xs", "gfnet-s", "gfnet-b", "gfnet-h-ti", "gfnet-h-s", "gfnet-h-b")
# In a process of its own: one that has found a TPU keeps it from all others.
LOOK = """
import importlib.util
import json
import jax
from jax.extend.backend import backends
platform = jax.default_backend()
beside = importlib.util.find_spec("torch") is not None and platform != "tpu"
if beside and platform == "gpu":
  import torch
  beside = torch.cuda.is_available()
print(json.dumps({
  "platform": platform,
  "kind": jax.devices()[0].device_kind,
  "devices": jax.device_count(),
  "backends": sorted(backends(), key=lambda name: name == "cpu"),
  "torch": beside,
}))
"""


class Part(NamedTuple):
  """One benchmark: the name of its results, and its arguments."""

  name: str
  arguments: tuple[object, ...]

  @property
  def kind(self) -> str:
    return self.name.partition("-")[0]


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog="tools/accelerator.py", description=__doc__)
  parser.add_argument("directory", type=Path, help="receives the results")
  parser.add_argument("--parts", nargs="+", choices=KINDS, default=KINDS, help="only these")
  parser.add_argument(
    "--quick", action="store_true", help="small images, on any machine: tries this program itself"
  )
  options = parser.parse_args(arguments)
  machine = look()
  print(f"{machine['devices']} x {printable(machine['kind'])} ({machine['platform']})", flush=True)
  if machine["platform"] == "cpu" and not options.quick:
    raise UserError(
      "jax finds no accelerator here, only the CPU; install jax for it (README.md, 'Several "
      "machines, TPU pods'), or try this program with --quick"
    )
  make_directory(options.directory)
  measure(plan(machine, options), machine, options.directory.resolve())


def look() -> dict[str, Any]:
  """What jax and PyTorch find on this machine."""
  done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
  try:
    if done.returncode == 0:
      return json.loads(done.stdout.splitlines()[-1])
  except (ValueError, IndexError):  # what it printed is shown below
    pass
  said = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
  raise UserError(
    f"{sys.executable} cannot start jax (exit code {done.returncode}: {printable(said, 300)}); "
    "install requirements.txt, and jax for the accelerator"
  )


def plan(machine: dict[str, Any], options: argparse.Namespace) -> list[Part]:
  """The parts in their order: what decides first, and what a later part profits from.

  A network has parts of its own: if it does not fit the device, the others are not lost.
  """
  quick = options.quick
  models = ("gfnet-ti", "gfnet-h-ti") if quick else MODELS
  size, batch, rounds = (32, 2, 2) if quick else (224, 128, 20)  # batch: of every device
  rows, turns = ("--batch-size", batch), ("--rounds", rounds)
  largest = ("--largest", 7 if quick else 96)
  torch = ("torch", "--image-size", size, *rows, *turns, *(() if quick else ("--compile",)))
  alone = ("models", "--image-sizes", size, "--batch-sizes", batch, *turns)
  alone += ("--dtypes", "float32", "bfloat16", "--peak-side", 256 if quick else 8192)

  def step(model: str, precision: str) -> tuple[object, ...]:
    fields = {"precision": precision, "model.image_size": size, "mixing.group_size": batch}
    fields["data.batch_size"] = batch * machine["devices"]
    overrides = (f"--config.{field}={value}" for field, value in fields.items())
    return ("step", "--config", f"configs/imagenet.py:{model}", *turns, *overrides)

  profile = ("--profile", options.directory.resolve() / "profile")
  write = () if quick else ("--write",)
  parts = [
    Part("correctness", ("correctness", "--models", *models, "--image-size", size, *largest)),
    Part("backends", ("backends", *rows, *largest, *turns, *write)),
    *(Part(f"step-bf16-{model}", step(model, "bf16")) for model in models),
    *(Part(f"torch-bf16-{m}", (*torch, "--models", m, "--precision", "bf16")) for m in models),
    *(Part(f"step-float32-{model}", step(model, "default")) for model in models),
    *(Part(f"torch-float32-{model}", (*torch, "--models", model)) for model in models),
    *(Part(f"models-{model}", (*alone, "--models", model)) for model in models),
    Part("layer", ("layer", *(("--sides", 4, 8) if quick else ()), *turns)),
    Part("profile", (*step(models[1], "bf16"), *profile)),
  ]
  chosen = [part for part in parts if part.kind in options.parts]
  if not machine["torch"]:
    print("PyTorch is not there, or not for this device: nothing is timed beside it", flush=True)
    chosen = [part for part in chosen if part.kind != "torch"]
  return chosen


def measure(parts: list[Part], machine: dict[str, Any], directory: Path) -> None:
  """Runs the parts one after the other.

  Raises:
    UserError: at once if correctness fails; at the end if another part did.
  """
  failed = []
  for part in parts:
    print(f"\n== {part.name}", flush=True)
    code = run_part(part, machine, directory)
    if not code:
      continue
    failed.append(f"{part.name} (exit code {code})")
    if part.kind == "correctness":
      raise UserError(
        f"{failed[0]} failed, see {printable(directory / part.name)}.txt; nothing was timed"
      )
  if failed:
    raise UserError(
      f"{len(failed)} of {len(parts)} parts failed: {', '.join(failed)}; the results of the others "
      f"are in {printable(directory)}, and what these said is in their .txt files"
    )


def run_part(part: Part, machine: dict[str, Any], directory: Path) -> int:
  """Runs a part, shows what it says and keeps it; returns its exit code."""
  result = directory / f"{part.name}.json"
  result.unlink(missing_ok=True)  # of an earlier call
  command = (*BENCHMARK, *part.arguments, "--output", result)
  # Named, a device that is lost is an error; else jax would continue on the CPU.
  environment = os.environ | {"JAX_PLATFORMS": ",".join(machine["backends"])}
  if part.kind == "torch":
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # both need memory of the GPU
  with (
    (directory / f"{part.name}.txt").open("w") as log,
    subprocess.Popen(
      [str(word) for word in command],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      errors="backslashreplace",
    ) as process,
  ):
    for line in process.stdout:
      print(line, end="", flush=True)
      log.write(line)
  return process.returncode


if __name__ == "__main__":
  sys.exit(run(main))
