"""What ends a script: interrupts, outputs that nobody takes, and what a system refuses."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import HANGS, ROOT, script_command, script_environment

from gfnet_jax.command_line import run


def start(code: str, *options: str, **settings) -> subprocess.Popen:
  """A process of a script whose main(arguments) has this body."""
  script = "\n".join(
    [
      "import signal, sys",
      "from gfnet_jax.command_line import run",
      "def main(arguments):",
      textwrap.indent(textwrap.dedent(code), "  "),
      "sys.exit(run(main))",
    ]
  )
  settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
  return subprocess.Popen([sys.executable, *options, "-c", script], cwd=ROOT, text=True, **settings)


def end(process: subprocess.Popen) -> tuple[int, str, str]:
  output, errors = process.communicate(timeout=HANGS)
  return process.returncode, output or "", errors or ""


# --- Interrupts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
  "module",
  [
    "signal.raise_signal(signal.SIGINT)",
    "try:\n  signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n  raise ImportError",
    "class Late:\n  def __del__(self):\n    signal.raise_signal(signal.SIGINT)\nLate()",
    "sorted([2, 1], key=lambda number: signal.raise_signal(signal.SIGINT))",
  ],
)
def test_an_interrupt_of_an_import_is_one_word(tmp_path, module):
  """Whatever the module would make of the exception; native ones abort the process."""
  (tmp_path / "slow_to_import.py").write_text(f"import signal\n{module}\nprint('imported')\n")
  process = start(f"sys.path.insert(0, {str(tmp_path)!r})\nimport slow_to_import")
  assert end(process) == (130, "", "interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize(
  "moment",
  ["absl.logging", "numpy", "jaxlib", "jax._src.core", "jax", "flax", "tensorstore", "grain"],
)
def test_an_interrupt_while_a_script_begins(tmp_path, moment):
  """Just after a library is imported, in the middle of the others."""
  _, *command = script_command("train.py", "--workdir", tmp_path / "run")
  with subprocess.Popen(
    [sys.executable, "-X", "importtime", *command],
    cwd=ROOT,
    env=script_environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    for line in process.stderr:
      if line.rpartition("|")[2].strip() == moment:
        break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=HANGS)
  assert process.returncode == 130
  assert errors.splitlines()[-1] == "interrupted"
  assert "Traceback" not in errors
  assert not (tmp_path / "run").exists()


def test_jobs_in_the_background_ignore_it_still():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    process = start("signal.raise_signal(signal.SIGINT)\nprint('alive')")
    assert end(process) == (0, "alive\n", "")
  finally:
    signal.signal(signal.SIGINT, before)


# --- Outputs --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("-u",)])
@pytest.mark.parametrize(
  "write", ["print(number, flush=True)", "print(number)", "sys.stdout.write(f'{number}\\n')"]
)
def test_a_reader_that_is_gone_ends_it_in_silence(options, write):
  process = start(f"for number in range(100_000):\n  {write}", *options)
  assert process.stdout.readline() == "0\n"
  process.stdout.close()
  with process.stderr:
    assert process.stderr.read() == ""
  assert process.wait(HANGS) == 141


def test_a_reader_that_is_gone_before_the_help_is_written():
  process = start("input()\nprint('help')\nsys.exit(0)", stdin=subprocess.PIPE)
  process.stdout.close()
  process.stdin.write("\n")
  process.stdin.close()
  with process.stderr:
    assert process.stderr.read() == ""
  assert process.wait(HANGS) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(
  "code", ["print('x')", "print('x', flush=True)", "print('x' * 100_000)", "sys.stdout.write('x')"]
)
def test_an_output_that_is_full_is_said(code):
  with Path("/dev/full").open("w") as full:
    found = end(start(code, stdout=full))
  advice = "make room, raise the limit or choose another place"
  assert found == (2, "", f"error: the output: No space left on device; {advice}\n")


@pytest.mark.parametrize(
  ("text", "written"), [("猫", r"\u732b"), ("Käse", r"K\xe4se"), ("\udcff", r"\udcff")]
)
def test_what_the_locale_cannot_write_is_escaped(text, written):
  environment = os.environ | {"PYTHONIOENCODING": "ascii"}
  assert end(start(f"print({text!a})", env=environment)) == (0, f"{written}\n", "")


# --- The system -----------------------------------------------------------------------------


@pytest.mark.parametrize(
  "number",
  [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG],
)
def test_what_the_system_refuses_is_one_line(number, monkeypatch, capsys):
  def main(arguments):
    raise OSError(number, os.strerror(number), "a\nb" + 2000 * "c")

  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
  assert run(main) == 2
  errors = capsys.readouterr().err
  assert errors.startswith("error: a\\nbccc") and errors.count("\n") == 1
  assert f": {os.strerror(number)}; make room" in errors


def test_bugs_keep_their_tracebacks(monkeypatch):
  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
  for error in (FileNotFoundError(errno.ENOENT, "gone", "x"), ZeroDivisionError(), OSError("odd")):

    def main(arguments, error=error):
      raise error

    with pytest.raises(type(error)):
      run(main)


def test_names_that_are_too_long(in_process):
  name = 300 * "n"
  for arguments in (
    ("tools/predict.py", "nowhere", name),
    ("eval.py", "--checkpoint", name),
    ("train.py", "--config", name),
  ):
    code, _, errors = in_process(*arguments)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "File name too long" in errors


def test_nothing_is_said_of_writes_that_nobody_waits_for():
  """TensorStore's, on a full disk; other errors that cannot be raised are shown."""
  code = """
  class Late:
    def __init__(self, text):
      self.text = text
    def __del__(self):
      raise RuntimeError(self.text)
  Late("Event loop is closed")
  """
  assert end(start(code)) == (0, "", "")
  code, _, errors = end(start(code.replace("Event loop", "Something else")))
  assert code == 0 and "RuntimeError: Something else is closed" in errors
