"""Scripts as processes in which the libraries are imported already.

Importing them takes longer than most of what the tests do with a script. A server imports
them once, starts no backend of jax, and forks for every script; all else is as if the script
had been started by itself: arguments, environment, outputs, signals, exit code.
"""

import array
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import IO, Self

ROOT = Path(__file__).parent.parent
LIBRARIES = (
  *("absl.logging", "clu.metrics", "clu.parameter_overview", "flax.nnx", "grain", "jax"),
  *("jax.experimental.multihost_utils", "ml_collections", "optax", "orbax.checkpoint"),
  *("sklearn.datasets", "tensorboardX", "tensorflow_datasets", "tqdm"),
)
INTEGER = array.array("i").itemsize


class Script:
  """A running script, with what the tests use of subprocess.Popen."""

  def __init__(self, server: socket.socket, *request):
    (output, out), (errors, err), (self._report, report) = os.pipe(), os.pipe(), os.pipe()
    request = json.dumps(request).encode()
    socket.send_fds(server, [request], [out, err, report])
    for descriptor in (out, err, report):
      os.close(descriptor)
    self.stdout, self.stderr = os.fdopen(output), os.fdopen(errors)
    self.pid, self.returncode = self._reported(), None

  def _reported(self) -> int:
    return array.array("i", os.read(self._report, INTEGER))[0]

  def wait(self, timeout: float | None = None) -> int:
    if self.returncode is None:
      if not select.select([self._report], [], [], timeout)[0]:
        raise subprocess.TimeoutExpired(str(self.pid), timeout)
      self.returncode = self._reported()
    return self.returncode

  def poll(self) -> int | None:
    return self.returncode if self.returncode is not None or self._is_running() else self.wait()

  def _is_running(self) -> bool:
    return not select.select([self._report], [], [], 0)[0]

  def send_signal(self, number: int) -> None:
    if self.poll() is None:
      with contextlib.suppress(ProcessLookupError):  # it has ended, which is not reported yet
        os.kill(self.pid, number)

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)

  def communicate(self, timeout: float) -> tuple[str, str]:
    """The outputs from here to the end."""
    texts = ["", ""]

    def read(i: int, stream: IO[str]) -> None:
      texts[i] = stream.read()

    streams = (self.stdout, self.stderr)
    readers = [threading.Thread(target=read, args=pair) for pair in enumerate(streams)]
    for reader in readers:
      reader.start()
    self.wait(timeout)
    for reader in readers:
      reader.join()
    return texts[0], texts[1]

  def __enter__(self) -> Self:
    return self

  def __exit__(self, exception: type | None, *_) -> None:
    if exception:
      self.kill()
    self.stdout.close()
    self.stderr.close()
    self.wait()
    os.close(self._report)


class Server:
  """Starts scripts; ends with its context, or with the process that made it."""

  def __init__(self):
    self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
      self._process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # as those of the scripts, whose streams are made here
        stderr=subprocess.PIPE,
      )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception) -> None:
    self._socket.close()
    self._process.communicate()

  def start(
    self, name: str, *arguments, env: dict[str, str], cwd: Path = ROOT, own_group: bool = False
  ) -> Script:
    """Runs a script with an environment that has the JAX_ and TFDS_ variables of this one.

    In a process group of its own, Ctrl-C can be sent to the script and its workers alone.
    """
    return Script(self._socket, [name, *map(str, arguments)], str(cwd), env, own_group)


def serve(requests: socket.socket) -> None:
  """Forks for every request, until nobody can send one; returns in the new processes alone."""
  while True:
    request, descriptors, *_ = socket.recv_fds(requests, 1 << 20, 3)
    _wait_for_ended(0 if not request else os.WNOHANG)
    if not request:
      os._exit(0)
    if not _fork():
      break
    for descriptor in descriptors:
      os.close(descriptor)
  requests.close()
  *outputs, report = descriptors
  if process := _fork():
    _report_end(process, report, outputs)
  os.close(report)
  for descriptor, output in zip(outputs, (1, 2), strict=True):
    os.dup2(descriptor, output)
    os.close(descriptor)
  sys.argv, directory, environment, own_group = json.loads(request)
  if own_group:
    os.setpgid(0, 0)
  os.chdir(directory)
  os.environ.clear()
  os.environ.update(environment)
  own_paths = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
  sys.path[:1] = [str(Path(directory, sys.argv[0]).parent), *own_paths]


def _wait_for_ended(options: int) -> None:
  """So that their time counts as ours."""
  with contextlib.suppress(ChildProcessError):
    while os.waitpid(-1, options)[0]:
      pass


def _fork() -> int:
  with warnings.catch_warnings(action="ignore"):  # NumPy's threads wait for work
    return os.fork()


def _report_end(process: int, report: int, outputs: list[int]) -> None:
  """Tells the number of a process, and how it ends; does not return."""
  for descriptor in outputs:
    os.close(descriptor)
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  os.write(report, array.array("i", [process]))
  _, status = os.waitpid(process, 0)
  os.write(report, array.array("i", [os.waitstatus_to_exitcode(status)]))
  os._exit(0)


if __name__ == "__main__":
  for library in LIBRARIES:
    importlib.import_module(library)
  gc.freeze()  # no copies of pages only to count
  serve(socket.socket(fileno=int(sys.argv[1])))
  runpy.run_path(sys.argv[0], run_name="__main__")
