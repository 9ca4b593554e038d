"""tools/accelerator.py: what it runs and keeps, and how it ends; by a stand-in for benchmarks."""

import json
import sys

import pytest
from helpers import ROOT

from gfnet_jax import startup
from gfnet_jax.command_line import run

CPU = {"platform": "cpu", "kind": "cpu", "devices": 1, "backends": ["cpu"], "torch": True}
TPU = {"platform": "tpu", "kind": "TPU v5 lite", "devices": 8, "torch": False}
TPU |= {"backends": ["tpu", "cpu"]}
GPU = {"platform": "gpu", "kind": "NVIDIA H100", "devices": 1, "torch": True}
GPU |= {"backends": ["cuda", "cpu"]}
# Prints what it is given; a part that is to fail ends with 3.
STAND_IN = """
import os, pathlib, sys
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
print("platforms", os.environ["JAX_PLATFORMS"], flush=True)
if output.stem in os.environ["FAILING"].split():
  sys.exit(3)
output.write_text(" ".join(sys.argv[1:]))
"""
SMALL = ("gfnet-ti", "gfnet-h-ti")
KINDS = ("step-bf16", "torch-bf16", "step-float32", "torch-float32", "models")
ALL = ["correctness", "backends", *(f"{kind}-{model}" for kind in KINDS for model in SMALL)]
ALL += ["layer", "profile"]


@pytest.fixture
def accelerator(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "tools"))
  import accelerator

  return accelerator


@pytest.fixture
def call(accelerator, monkeypatch, tmp_path, capsys):
  """call(*arguments, machine, failing): exit code, output, last line of errors, results."""
  benchmark = tmp_path / "benchmark.py"
  benchmark.write_text(STAND_IN)
  monkeypatch.setattr(accelerator, "BENCHMARK", (sys.executable, "-I", "-S", benchmark))
  directory = tmp_path / "new/results"

  def call(*arguments, machine=CPU, failing=""):
    monkeypatch.setattr(accelerator, "look", lambda: machine)
    monkeypatch.setenv("FAILING", failing)
    monkeypatch.setattr(sys, "argv", ["tools/accelerator.py", str(directory), *arguments])
    code = run(accelerator.main)
    output, errors = capsys.readouterr()
    results = {path.stem: path.read_text() for path in sorted(directory.glob("*.json"))}
    return code, output, errors, results

  call.directory = directory
  return call


def test_all_parts_leave_results(call):
  code, output, errors, results = call("--quick")
  assert (code, errors) == (0, "")
  assert results.keys() == set(ALL)
  assert [line[3:] for line in output.splitlines() if line.startswith("== ")] == ALL
  assert (call.directory / "layer.txt").read_text() == "platforms cpu\n"
  assert "--write" not in results["backends"], "a trial does not change the table"


def test_what_fails_is_named_and_the_rest_still_runs(call):
  call("--quick")
  code, _, errors, results = call("--quick", failing="backends torch-bf16-gfnet-ti")
  assert code == 2
  assert errors.startswith(
    "error: 2 of 14 parts failed: backends (exit code 3), torch-bf16-gfnet-ti (exit code 3); the "
  )
  assert errors.count("\n") == 1
  assert results.keys() == set(ALL) - {"backends", "torch-bf16-gfnet-ti"}, (
    "none of an earlier call is left"
  )
  assert (call.directory / "backends.txt").read_text() == "platforms cpu\n"


def test_where_correctness_fails_nothing_is_timed(call):
  code, _, errors, results = call("--quick", failing="correctness layer")
  assert code == 2
  assert errors.startswith("error: correctness (exit code 3) failed, see ")
  assert errors.endswith("correctness.txt; nothing was timed\n")
  assert not results


def test_single_parts(call):
  code, _, _, results = call("--quick", "--parts", "layer", "step")
  assert code == 0
  assert results.keys() == {name for name in ALL if name.startswith(("layer", "step"))}
  code, _, errors, _ = call("--quick", "--parts", "speed")
  assert (code, errors.count("\n")) == (2, 1)
  assert "'speed'" in errors


def test_a_tpu_is_never_replaced_by_the_host(call):
  code, output, _, results = call(machine=TPU)
  assert code == 0
  assert "8 x TPU v5 lite (tpu)" in output
  assert output.count("platforms tpu,cpu\n") == len(results), "jax fails if the TPU is lost"
  assert not any(name.startswith("torch") for name in results)
  assert "nothing is timed beside it" in output
  assert len([name for name in results if name.startswith("step-")]) == 14
  assert "--config.data.batch_size=1024" in results["step-bf16-gfnet-h-b"]
  assert results["backends"].split()[-3] == "--write"


def test_a_gpu_has_pytorch_beside_it(call):
  code, output, _, results = call("--parts", "torch", machine=GPU)
  assert code == 0
  assert output.count("platforms cuda,cpu\n") == len(results) == 14
  assert "--compile --models gfnet-b --precision bf16" in results["torch-bf16-gfnet-b"]


def test_without_an_accelerator_nothing_is_run(call):
  code, _, errors, results = call(machine=CPU)
  assert code == 2
  assert errors.startswith("error: jax finds no accelerator here, only the CPU; install jax for it")
  assert errors.count("\n") == 1
  assert not results
  assert not call.directory.exists()


def test_what_this_machine_has_is_seen_by_a_process_of_its_own(accelerator):
  found = accelerator.look()
  assert found.pop("torch") in (True, False)
  assert found == {"platform": "cpu", "kind": "cpu", "devices": 8, "backends": ["cpu"]}


def test_a_python_that_cannot_start_jax_is_one_line(accelerator, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(sys, "executable", "/bin/false")
  monkeypatch.setattr(sys, "argv", ["tools/accelerator.py", str(tmp_path), "--quick"])
  assert run(accelerator.main) == 2
  errors = capsys.readouterr().err
  assert errors.startswith("error: /bin/false cannot start jax (exit code 1: ); install ")
  assert errors.count("\n") == 1


@pytest.mark.parametrize("quick", [True, False])
def test_the_benchmarks_know_all_arguments(accelerator, monkeypatch, tmp_path, quick):
  """Nothing is run; a flag that a benchmark does not have would end a day on a device."""
  pytest.importorskip("torch")
  monkeypatch.setattr(startup, "keep_freed_memory", lambda: None)
  import benchmark
  from benchmarks import backends, correctness, layer, models, step, torch

  asked = []
  for module in (backends, correctness, layer, models, step, torch):
    monkeypatch.setattr(module, "run", asked.append)
  options = ["--quick"] * quick
  monkeypatch.setattr(accelerator, "look", lambda: GPU)
  monkeypatch.setattr(accelerator, "run_part", run_in_process(benchmark.main))
  accelerator.main([str(tmp_path), *options])
  assert len(asked) == (14 if quick else 39)
  assert all(option.output.parent == tmp_path for option in asked)


def run_in_process(main):
  def run_part(part, machine, directory):
    output = directory / f"{part.name}.json"
    main([str(word) for word in (*part.arguments, "--output", output)])
    return 0

  return run_part


@pytest.mark.slow
def test_a_trial_on_this_machine(script, tmp_path):
  pytest.importorskip("torch")
  done = script("tools/accelerator.py", tmp_path, "--quick")
  assert done.returncode == 0, done.stdout + done.stderr
  results = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
  assert results.keys() == set(ALL)
  assert all(result["rows"] for result in results.values())
  assert list(tmp_path.glob("profile/**/*.trace.json.gz"))
