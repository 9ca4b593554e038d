"""Programs compiled ahead: reading their text, against answers by hand, and the tool itself."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
from types import SimpleNamespace

import jax
import pytest
from flax import nnx
from helpers import HANGS, ROOT, script_command

from gfnet_jax.config_files import read_config
from gfnet_jax.errors import UserError
from gfnet_jax.models.functional import split
from gfnet_jax.models.variants import create_model
from gfnet_jax.sharding import make_mesh

DIGITS = "configs/digits.py"

# Short programs as the compilers write them. The first has a loop of 12 with one of 3 inside,
# kernels and sums; the second a stack of 12 arrays, one read and one replaced five times.
TPU, GPU = ((ROOT / f"tests/programs/{name}.hlo").read_text() for name in ("tpu", "gpu"))
ARRAY = 128 * 256 * 4  # bytes of their float32 arrays


@pytest.fixture(autouse=True)
def tools(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "tools"))


def test_the_time_of_a_tpu_program_by_hand():
  from ahead.chips import CHIPS
  from ahead.costs import estimate
  from ahead.hlo import Program

  program = Program(TPU)
  found = estimate(program, program.steps(), CHIPS["v5e"])
  # 12 times (3 times the filter, and a conversion), a call, the longer branch, sums, a loop of
  # unknown length once.
  cycles = 12 * (3 * 1000 + 500) + 300 + 70 + 20 + 9
  assert found["estimated_cycles"] == cycles
  # One kernel moves two operands and the result; the other states its arithmetic.
  first, second = 1.5 * 3 * ARRAY / 819e9, 1.5 * 197e6 / 197e12
  assert found["estimated_by_rule"] == {"count": 2, "ms": pytest.approx(1e3 * (first + second))}
  seconds = cycles / 1.5e9 + first + second
  assert found["estimated_ms"] == pytest.approx(1e3 * seconds, rel=1e-12)
  assert found["filter_ms"] == pytest.approx(1e3 * (36000 / 1.5e9 + first), rel=1e-12)
  # The reversal of an array; its result is in the vector memory.
  assert found["not_estimated"] == {"count": 1, "floor_ms": pytest.approx(1e3 * ARRAY / 819e9)}
  assert program.unknown_loops == 1


def test_a_chip_of_unknown_clock_has_cycles_and_no_time():
  from ahead.chips import CHIPS
  from ahead.costs import estimate
  from ahead.hlo import Program

  program = Program(TPU)
  found = estimate(program, program.steps(), CHIPS["v5p"])
  assert found["estimated_ms"] is None
  assert found["filter_ms"] is None
  assert found["estimated_cycles"] > 42000


def test_collectives_and_sums_by_hand():
  from ahead.costs import bf16_sums, collectives
  from ahead.hlo import Program

  program = Program(TPU)
  steps = program.steps()
  sizes = {"f32": 12 * 256 * 4, "bf16": 12 * 2 * 8 * 2}
  assert collectives(program, steps) == {
    "all-reduce": {"count": 12, "bytes": sum(sizes.values()), "dtypes": sizes}
  }
  # A fused sum over the rows and 12 over devices; neither the maximum nor what only drops an axis.
  assert bf16_sums(program, steps) == 13
  in_float32 = Program(TPU.replace("bf16", "f32"))
  assert bf16_sums(in_float32, in_float32.steps()) == 0

  program = Program(GPU)
  size = 2048 * 256 * 4  # what arrives, not the pair of the start
  assert collectives(program, program.steps()) == {
    "all-gather": {"count": 1, "bytes": size, "dtypes": {"f32": size}}
  }


def test_the_bytes_of_a_gpu_program_by_hand():
  from ahead.hlo import Program
  from ahead.traffic import traffic

  program = Program(GPU)
  # Slices of a stack, an operand once, an update in place: 2 + 2 + 2 arrays and two indices.
  body = 6 * ARRAY + 2 * 4
  # A transform, a slice, a library's product (its room to work in is none), a gathering.
  around = 2 * 2 * ARRAY + 2 * ARRAY + 2 * ARRAY + (1 + 16) * ARRAY
  assert traffic(program, program.steps()) == 5 * body + around
  assert program.unknown_loops == 0


def test_a_program_of_this_machine_is_read():
  """The syntax is that of the installed jax: a scan and a sum over eight devices."""
  from ahead.costs import collectives
  from ahead.hlo import Program

  def scanned(x):
    return jax.lax.scan(lambda carry, _: (carry @ carry, carry.sum()), x, length=7)

  mesh = make_mesh()
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  x = jax.ShapeDtypeStruct((16, 16), "float32", sharding=rows)
  text = jax.jit(scanned).lower(x).compile().as_text()
  program = Program(text)
  steps = program.steps()
  assert program.unknown_loops == 0
  assert collectives(program, steps)["all-reduce"]["count"] % 7 == 0


@pytest.mark.parametrize(
  ("topology", "message"),
  [
    ("v5e", "expected chips and how they are arranged"),
    ("v5e:0x4", "expected chips and how they are arranged"),
    ("v5e:2x", "expected chips and how they are arranged"),
    ("v5:2x4", "unknown chip 'v5'.*did you mean v5"),
    ("h100:2x4", "expected a number of GPUs, such as h100:8"),
    ("v5e:2x4x2", "expected a number of chips along every axis, such as v5e:2x4"),
    ("v5p:2x2", "expected a number of chips along every axis, such as v5p:2x2x1"),
    ("h100:8\x1b[2J", r"h100:8.{1,2}x1b.* expected chips"),
  ],
)
def test_a_topology_that_is_none(topology, message):
  from ahead.chips import parse_topology

  with pytest.raises(UserError, match=message):
    parse_topology(topology)


def test_topologies():
  from ahead.chips import CHIPS, parse_topology

  assert parse_topology("v5e:2x4") == (CHIPS["v5e"], (2, 4))
  assert parse_topology("h100:8") == (CHIPS["h100"], (8,))


@pytest.mark.parametrize(
  ("topology", "missing"), [("v5e:2x4", "libtpu"), ("h100:8", "CUDA plugin")]
)
def test_a_compiler_that_is_missing_is_one_line(monkeypatch, in_process, topology, missing):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ())
  code, out, err = in_process("tools/compile_ahead.py", "--topology", topology)
  assert (code, out, err.count("\n")) == (2, "", 1)
  assert f"needs {missing}; pip install -r requirements-ahead.txt" in err.replace("jax's ", "")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((), "--topology"),
    (("--topology", "v5e:2x4", "--program", "test"), "invalid choice: 'test'"),
    (("--topology", "v5e:2x4", "--program", "filter"), "--grid goes with"),
    (("--topology", "v5e:2x4", "--grid", "14x14x384"), "--grid goes with"),
    (("--topology", "v5e:2x4", "--program", "filter", "--grid", "14x14"), "14x14 found, expected"),
  ],
)
def test_mistaken_flags_are_one_line(in_process, arguments, message):
  code, out, err = in_process("tools/compile_ahead.py", *arguments)
  assert (code, out, err.count("\n")) == (2, "", 1)
  assert message in err


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (("--config.data.batch_size=65",), "multiple of the 8 devices"),
    (("--config.model.num_classes=0",), "--config.model.num_classes=N"),
    (("--config.distillation.teacher=runs/teacher",), "--config.distillation.teacher="),
  ],
)
def test_a_config_that_cannot_be_compiled_ahead(overrides, message):
  from ahead.programs import lower

  with pytest.raises(UserError, match=message):
    lower("train", read_config(DIGITS, list(overrides)), make_mesh(), None)


def test_the_batch_is_what_the_benchmark_makes():
  from ahead.programs import batch_shapes
  from benchmarks.step import random_batch

  overrides = ["--config.erasing.probability=0.5", "--config.erasing.max_count=3"]
  config = read_config(DIGITS, overrides)
  shapes = batch_shapes(config, config.data.batch_size, make_mesh())
  expected = {name: (x.shape, x.dtype) for name, x in random_batch(config).items()}
  assert {name: (x.shape, x.dtype) for name, x in shapes.items()} == expected


@pytest.mark.parametrize("program", ["filter", "filter-gradient"])
def test_the_filter_alone_is_traced(program):
  from ahead.programs import lower

  config = read_config(DIGITS, ["--config.precision=bf16"])
  lowered = lower(program, config, make_mesh(), (4, 6, 16))
  found = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(lowered.out_info)]
  tokens, weight = (64, 4, 6, 16), (2, 4, 4, 16)
  gradients = [(weight, "float32"), (tokens, "float32")] if "gradient" in program else []
  assert found == [(tokens, "float32"), *gradients]


class Lowered:
  """Stands for a traced program; its compilation needs what it is told to."""

  def __init__(self, **sizes: int):
    names = ("argument", "output", "alias", "temp")
    self.plan = SimpleNamespace(**{f"{name}_size_in_bytes": sizes.get(name, 0) for name in names})

  def compile(self):
    if not self.plan.temp_size_in_bytes:
      raise jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Ran out of memory. Used 21.4G of 15.75G hbm.\nLargest: ..."
      )
    return SimpleNamespace(memory_analysis=lambda: self.plan, as_text=lambda: TPU)


@pytest.fixture
def compile_ahead(monkeypatch, in_process):
  """The tool with eight devices of this machine as chips, and a program that needs some memory."""
  from ahead import chips, report

  monkeypatch.setattr(chips, "check_compiler", lambda chip: None)
  monkeypatch.setattr(chips, "prepare_environment", lambda: None)
  monkeypatch.setattr(chips, "chips_of", lambda *arguments: jax.devices())

  def call(sizes: dict[str, int], *arguments):
    monkeypatch.setattr(report, "lower", lambda *arguments: Lowered(**sizes))
    flags = ("--topology", "v5e:2x4", "--config", "configs/imagenet.py:gfnet-h-b")
    return in_process("tools/compile_ahead.py", *flags, *arguments)

  return call


def test_what_fits_is_shown_and_written(compile_ahead, tmp_path):
  path, text = tmp_path / "new" / "result.json", tmp_path / "program.txt"
  sizes = dict(argument=int(2e9), output=int(1.5e9), alias=int(1.25e9), temp=int(13.7e9))
  code, out, err = compile_ahead(sizes, "--output", path, "--text", text)
  assert (code, err) == (0, "")
  assert "gfnet-h-b, train, precision bf16, 128 images on each of 8 TPU v5e" in out
  assert "15.9 GB of 16 GB, 13.7 GB of it temporary: fits" in out
  assert "all-reduce 12 times, 0.0127 MB (f32, bf16)" in out
  assert "2, 0.00222 ms" in out  # the kernels by rule
  assert text.read_text() == TPU
  result = json.loads(path.read_text())
  assert result["compiles"] and result["fits"] and result["advice"] == []
  expected = {"argument_bytes": 2e9, "temporary_bytes": 13.7e9, "needed_bytes": 15.95e9}
  assert {name: result[name] for name in expected} == expected
  assert (result["chips"], result["images_per_chip"], result["chip_bytes"]) == (8, 128, 16e9)


@pytest.mark.parametrize("temporary", [0, int(21.4e9)])  # XLA refuses it, or says what it needs
def test_what_does_not_fit_is_one_line_of_advice(compile_ahead, tmp_path, temporary):
  path = tmp_path / "result.json"
  sizes = dict(argument=int(0.7e9), temp=temporary)
  code, _, err = compile_ahead(sizes, "--output", path)
  assert (code, err.count("\n")) == (2, 1)
  assert "try --config.model.remat=True or " in err
  assert ("needs 22.1 GB on every TPU v5e, which has 16 GB" in err) == bool(temporary)
  assert ("RESOURCE_EXHAUSTED: Ran out of memory. Used 21.4G" in err) != bool(temporary)
  result = json.loads(path.read_text())
  assert (result["compiles"], result["fits"]) == (bool(temporary), False)
  assert result["advice"][0] == "--config.model.remat=True"


def test_jax_uses_a_part_of_a_gpu(compile_ahead, monkeypatch, tmp_path):
  """Of 84.9 GB 63.7; half of it if told so."""
  path = tmp_path / "result.json"
  flags = ("--topology", "h100:8", "--output", path)
  code, out, _ = compile_ahead(dict(temp=int(63e9)), *flags)
  assert code == 0 and "63 GB of 63.7 GB" in out
  code, _, err = compile_ahead(dict(temp=int(64e9)), *flags)
  assert (code, err.count("\n")) == (2, 1)
  assert "needs 64 GB on every NVIDIA H100 80GB HBM3, which has 84.9 GB, 63.7 GB of it for" in err
  assert json.loads(path.read_text())["usable_bytes"] == 84942979072 * 3 // 4
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
  code, _, err = compile_ahead(dict(temp=int(63e9)), *flags)
  assert code == 2 and "42.5 GB of it for jax" in err
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "half")
  code, _, err = compile_ahead(dict(temp=int(63e9)), *flags)
  assert (code, err.count("\n")) == (2, 1) and "MEM_FRACTION is 'half', expected a number" in err


def test_what_a_gpu_cannot_tile_is_compiled_without_triton(compile_ahead, monkeypatch, tmp_path):
  def compile_with(self, compiler_options=None):
    if compiler_options is None:
      raise jax.errors.JaxRuntimeError("INTERNAL: Couldn't find output tile sizes for %dot")
    assert compiler_options == {"xla_gpu_enable_triton_gemm": False}
    return SimpleNamespace(memory_analysis=lambda: self.plan, as_text=lambda: GPU)

  monkeypatch.setattr(Lowered, "compile", compile_with)
  path = tmp_path / "result.json"
  code, out, err = compile_ahead({}, "--topology", "h100:8", "--output", path)
  assert (code, err) == (0, "")
  assert "with xla_gpu_enable_triton_gemm=False" in out
  result = json.loads(path.read_text())
  assert result["floor_ms"] == pytest.approx(result["bytes_accessed"] / 3.35232e9)
  code, _, err = compile_ahead({}, "--output", path)  # on a TPU it is no such thing
  assert (code, err.count("\n")) == (2, 1)
  assert "refuses the program (INTERNAL: Couldn't find" in err


def test_a_place_for_the_result_that_is_none_is_said_before_the_work(compile_ahead, tmp_path):
  code, out, err = compile_ahead({}, "--output", tmp_path)
  assert (code, out, err.count("\n")) == (2, "", 1)
  assert "is a directory or a device, expected a file" in err


COMPILERS = {"v5e:2x4": "libtpu", "h100:8": "jax_cuda12_plugin"}


@pytest.mark.slow
@pytest.mark.parametrize("topology", COMPILERS)
def test_only_gradients_cross_and_no_sum_is_in_bf16_on_an_accelerator(tmp_path, topology):
  """In the training step of imagenet.py: eight chips, bf16, the filter and products by `auto`."""
  if importlib.util.find_spec(COMPILERS[topology]) is None:
    pytest.skip(f"{COMPILERS[topology]} is not installed (requirements-ahead.txt)")
  path = tmp_path / "result.json"
  flags = ("--topology", topology, "--config", "configs/imagenet.py:gfnet-ti", "--output", path)
  environment = {  # without what the tests set for themselves
    name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))
  }
  done = subprocess.run(
    script_command("tools/compile_ahead.py", *flags, "--config.model.depth=2"),
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=HANGS,
  )
  assert done.returncode == 0, done.stderr
  result = json.loads(path.read_text())
  assert result["compiles"] and result["fits"]
  _, params = split(nnx.eval_shape(lambda: create_model("gfnet-ti", depth=2)))
  size = sum(4 * param.size for param in params.values())
  assert set(result["collectives"]) == {"all-reduce"}
  assert size <= result["collectives"]["all-reduce"]["bytes"] < size + 1000  # and some scalars
  assert result["bf16_sums"] == 0
  if topology.startswith("v5e"):
    assert 0 < result["filter_ms"] < result["estimated_ms"]
  else:
    assert result["floor_ms"] == pytest.approx(result["bytes_accessed"] / 3.35232e9)
