"""Every command of README.md, run as typed in a directory that looks like a clone.

Commands that would take hours get flags behind their own (SHORTER). What a user would have, such as
photos, ImageNet and the official weights, is small and made by readme_files.py. A command may need
what one before it made, so all are run in the README's order: first those in blocks of code.
"""

import ast
import contextlib
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest
from documents import code_blocks, parts, spans, typed_lines
from helpers import HANGS, ROOT, free_port, script_environment
from readme_files import make_clone, move_home, write_what_users_have

from gfnet_jax import startup
from gfnet_jax.command_line import run

README = (ROOT / "README.md").read_text()
PROGRAMS = ("python", "pip", "gfnet-jax", "srun", "mpirun", "gcloud", "tensorboard")
TYPED = [part for line in typed_lines(README) for part in parts(line)]
NAMED = [span for span in spans(README) if " " in span and span.split()[0] in PROGRAMS]
COMMANDS = list(dict.fromkeys([*TYPED, *NAMED]))

NEW = (  # environments: .ci/run takes these lines from the README
  "pip install -r requirements.txt",
  "pip install -r requirements-test.txt",
  "python -m pytest",
  "pip install -r requirements.txt pytest pytest-xdist hypothesis safetensors scipy",
)
BY_CI = {  # and runs these, which stand there in another form
  "pip install .": 'pip" install --quiet --no-deps .',
  'python -m pytest -m "processes and not slow"': '-m pytest -q -m "processes and not slow"',
}
# Where the compilers for accelerators are installed: in tests/test_compile_ahead.py.
AHEAD = "python tools/compile_ahead.py --topology v5e:2x4 --config configs/imagenet.py:gfnet-h-b"
NOT_RUN = (
  # Installations: of what .ci/run has by other names, and for accelerators.
  *("pip install matplotlib", "pip install -r requirements-ahead.txt"),
  *('pip install -U "jax[cuda13]"', 'pip install -U "jax[tpu]"'),
  # Programs of others. What SLURM and Open MPI tell a process: tests/test_distributed.py.
  *("tensorboard --logdir runs", "srun python train.py --config ..."),
  "mpirun python train.py --config ...",
  'gcloud compute tpus tpu-vm ssh NAME --worker=all --command="..."',
)
A_STEP = (
  *("--config.data.batch_size=8", "--config.data.eval_batch_size=8"),
  *("--config.mixing.group_size=8", "--config.data.reading.workers=0"),
  *("--config.optimizer.warmup_epochs=0", "--config.eval_every_epochs=1"),
  "--config.precision=default",  # bf16 is slow on a CPU
)
IMAGENET = (
  *(*A_STEP, "--config.num_epochs=0.016", "--config.model.image_size=48"),
  "--config.data.eval_batch_size=200",
)
TWO_EPOCHS = (
  *("--config.num_epochs=2", "--config.eval_every_epochs=1"),
  *("--config.optimizer.warmup_epochs=1", "--config.data.batch_size=320"),
  "--config.model.depth=1",
)
SHORTER = {  # flags by the last word of a command that is here
  "train.py": TWO_EPOCHS,
  "train": TWO_EPOCHS,
  "configs/photos.py": ("--config.num_epochs=1",),
  "configs/imagenet.py": IMAGENET,
  # The other way to ImageNet, for another run.
  "--config.data.data_dir=$HOME/tensorflow_datasets": (*IMAGENET, "--workdir", "runs/archives"),
  "configs/imagenet_384.py": (
    *A_STEP,
    "--config.num_epochs=0.008",
    "--config.data.eval_split=validation[:8]",
  ),
  "configs/transfer.py": (
    *A_STEP,
    "--config.num_epochs=0.25",
    "--config.data.eval_split=test[:8]",
  ),
  "path/to/imagenet": ("--batch-size", "8"),
  "tools/robustness.py": ("--batch-size", "8"),
  "tools/domains.py": ("--seeds", "1", "--domains", "rotated", *TWO_EPOCHS),
  "pytest": ("--collect-only", "-n", "0", "tests/test_readme.py"),
}


def whole(command: str) -> str:
  """The command with flags that shorten it, if it needs some."""
  names = [word.partition(":")[0] for word in shlex.split(command)]
  flags = next((SHORTER[name] for name in reversed(names) if name in SHORTER), ())
  command = command.replace("--config ...", "--config configs/digits.py")
  return f"{command} {shlex.join(flags)}" if flags else command


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Iterator[Path]:
  """The directory that all commands are run in, one after the other."""
  root = tmp_path_factory.mktemp("readme")
  with pytest.MonkeyPatch.context() as patch:
    move_home(root / "home", patch)
    clone = make_clone(root / "gfnet_jax")
    write_what_users_have(clone, root / "home", patch)
    yield clone
  shutil.rmtree(root)  # a gigabyte of checkpoints


@pytest.fixture
def here(clone, monkeypatch, capsys) -> Iterator[Callable[[str], str]]:
  """here(command) runs a script of the project in this process; returns what it prints."""

  def run_here(command: str) -> str:
    words = [os.path.expanduser(word) for word in shlex.split(os.path.expandvars(command))]  # noqa: PTH111
    words = words[1:] if words[0] == "python" else words
    script = "gfnet_jax/__main__.py" if words[0] == "gfnet-jax" else words[0]
    monkeypatch.setattr(sys, "argv", words)
    capsys.readouterr()
    code = run(runpy.run_path(script)["main"])
    output, errors = capsys.readouterr()
    assert code == 0, f"{command}: {errors}"
    return output

  monkeypatch.chdir(clone)
  monkeypatch.setattr(startup, "start", lambda: None)
  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
  monkeypatch.syspath_prepend("tools")  # as for Python that runs a script there
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield run_here


@pytest.fixture
def in_shell(clone) -> Callable[..., str]:
  """in_shell(*commands) runs commands in shells, at the same time; returns what they print."""
  path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
  environment = script_environment() | {"PATH": path, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

  def run_in_shell(*commands: str) -> str:
    options = dict(cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with contextlib.ExitStack() as stack:
      started = []
      for command in commands:
        process = subprocess.Popen(["bash", "-c", command], text=True, **options)
        started.append(stack.enter_context(process))
        stack.callback(process.kill)  # before the context waits for its end
      with ThreadPoolExecutor() as threads:  # so that none waits for another to be read
        outputs = list(threads.map(lambda process: process.communicate(timeout=HANGS)[0], started))
    for command, process, output in zip(commands, started, outputs, strict=True):
      assert process.returncode == 0, f"{command}: {output}"
    return "".join(outputs)

  return run_in_shell


def runs_here(command: str) -> bool:
  """Whether it is a script of the project, or gfnet-jax, and needs no process of its own."""
  words = command.split()
  script = words[0] == "python" and (ROOT / words[1]).is_file()
  return (script or words[0] == "gfnet-jax") and "--coordinator" not in words


def runs_in_shell(command: str) -> bool:
  return bool(re.match(r"[A-Z_]+=\S+ python \S+\.py|python -m pytest", command))


TO_RUN = [command for command in COMMANDS if command not in {*NEW, *BY_CI, AHEAD, *NOT_RUN}]
HERE = list(filter(runs_here, TO_RUN))
IN_SHELL = list(filter(runs_in_shell, TO_RUN))
TWO_MACHINES = [command for command in TO_RUN if "--coordinator" in command]


def test_every_command_is_run():
  run = {*HERE, *IN_SHELL, *TWO_MACHINES, *NEW, *BY_CI, AHEAD, *NOT_RUN}
  words = {word.partition(":")[0] for command in run for word in command.split()}
  assert words >= SHORTER.keys(), "flags that shorten no command"
  for command in COMMANDS:
    assert command in run, f"README has a command that nothing runs: {command}"
  for command in run:
    assert command in COMMANDS, f"no longer in the README: {command}"


def test_ci_runs_what_is_left_to_it():
  """By its own lines, which look for those of the README."""
  text = (ROOT / ".ci/run").read_text()
  start, end = text.index("readme() {"), text.index("# fresh PYTHON")
  names = ("main", "tests", "tests_without_torch")
  show = "".join(f'\necho "${name}"' for name in names)
  found = subprocess.run(
    ["bash", "-euc", text[start:end] + show],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  commands = [part for line in found.stdout.splitlines() for part in parts(line)]
  assert set(commands) == {*NEW, "python train.py"}
  assert all(re.search(rf'fresh .* "\${name}"', text) for name in names)
  assert all(part in text for part in BY_CI.values())


def test_what_is_compiled_ahead_is_that_of_its_tests():
  flags = ", ".join(f'"{word}"' for word in AHEAD.split()[2:])
  assert f"({flags})" in (ROOT / "tests/test_compile_ahead.py").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("command", HERE, ids=HERE)
def test_a_command_runs_as_typed(command, here, clone):
  before = {path for path in promised(command) if (clone / path).exists()}
  assert not before - {Path("~/tensorflow_datasets").expanduser()}, "left by another command"
  output = here(whole(command))
  if "init_checkpoint" in command:
    assert "Initial weights: " in output, "an earlier run was continued"
  for path in promised(command):
    assert (clone / path).exists(), f"{command} wrote no {path}"


def promised(command: str) -> Iterator[Path]:
  """The files and directories that a command is asked to write."""
  words = [os.path.expanduser(word) for word in command.split()]  # noqa: PTH111
  for flag, path in itertools.pairwise(words):
    if flag in ("--output", "--workdir"):
      yield Path(path)
  if "convert_torch_weights.py" in words:
    yield Path(words[-1])


@pytest.mark.slow
@pytest.mark.parametrize("command", IN_SHELL, ids=IN_SHELL)
def test_a_command_runs_in_a_shell(command, in_shell):
  output = in_shell(whole(command))
  if devices := re.search(r"device_count=(\d+)", command):
    assert f"{devices[1]} x cpu" in output


@pytest.mark.slow
@pytest.mark.parametrize("command", TWO_MACHINES, ids=TWO_MACHINES)
def test_two_machines_by_hand(command, in_shell):
  """Both are this one; the second differs in its number alone, as the README says."""
  first = whole(f"{command} --workdir runs/two").replace("HOST0:1234", f"127.0.0.1:{free_port()}")
  second = first.replace("--process-id 0", "--process-id 1")
  assert first != second
  assert "2 x cpu" in in_shell(first, second)


@pytest.mark.slow
@pytest.mark.parametrize(
  "code", [block.text for block in code_blocks(README) if block.language == "python"]
)
def test_the_python_gives_what_its_comments_say(code, clone, monkeypatch):
  """A comment may have the value of an expression, or shapes: of an array, or first and last."""
  monkeypatch.chdir(clone)
  names = {}
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    exec(code, names)
  for expression, literal in re.findall(r"^(gfnet_jax\..*)\n# (\[.*\])$", code, re.MULTILINE):
    assert eval(expression, names) == ast.literal_eval(literal)
  for name, comment in re.findall(r"^(\w+) = .*?  # (.*)$", code, re.MULTILINE):
    shapes = [ast.literal_eval(shape) for shape in re.findall(r"\((?:\d+, )+\d+\)", comment)]
    if len(shapes) == 1:
      assert names[name].shape == shapes[0]
      assert "float32" not in comment or names[name].dtype == "float32"
    elif shapes:
      assert [names[name][0].shape, names[name][-1].shape] == shapes
