"""The two files of onnxruntime-web that a page needs, from npm: checked against their sums."""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path

from gfnet_jax.errors import UserError
from gfnet_jax.text import printable

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA256 = {
  "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
  "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
MOST_BYTES = 100_000_000  # of a file in a package
ADVICE = f"expected {PACKAGE} {VERSION}, as `npm pack {PACKAGE}@{VERSION}` fetches it"


def check_runtime(source: Path | None = None) -> None:
  """Checks that `find_runtime` has something to read or to fetch with, which is quickly told.

  Raises:
    UserError: if not.
  """
  if source is None and not shutil.which("npm"):
    raise UserError(
      f"the page needs {PACKAGE}, which npm fetches, but there is no npm; install Node.js, or "
      "fetch the package elsewhere and name it with --runtime"
    )
  if source is not None and not source.exists():
    raise UserError(f"cannot read {printable(source, 1000)} (nothing is there); {ADVICE}")


def find_runtime(source: Path | None = None) -> dict[str, bytes]:
  """The files by name.

  Args:
    source: the package as npm packs it (.tgz), or a folder: the package, or one where npm has
      installed it. None to fetch it with npm, which keeps it in its cache.

  Raises:
    UserError: if it is not there or not of that version, or npm is missing or fails.
  """
  check_runtime(source)
  if source is None:
    with tempfile.TemporaryDirectory() as directory:
      return find_runtime(_fetch(Path(directory)))
  try:
    files = _read_folder(source) if source.is_dir() else _read_package(source)
  except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
    reason = getattr(error, "strerror", None) or printable(error)
    raise UserError(f"cannot read {printable(source, 1000)} ({reason}); {ADVICE}") from error
  for name, content in files.items():
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
      raise UserError(f"{name} in {printable(source, 1000)} is another one; {ADVICE}")
  return files


def _fetch(directory: Path) -> Path:
  """The package in a directory, by the npm of the user."""
  command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--silent"]
  try:
    subprocess.run(command, cwd=directory, capture_output=True, check=True, text=True)
    return next(directory.glob("*.tgz"))
  except (OSError, subprocess.CalledProcessError, StopIteration) as error:
    reason = printable(getattr(error, "stderr", None) or error, 400)
    raise UserError(
      f"npm cannot fetch {PACKAGE} {VERSION} ({reason}); fetch the package elsewhere and name it "
      "with --runtime"
    ) from error


def _read_folder(folder: Path) -> dict[str, bytes]:
  package = next(
    (place for place in (folder / "node_modules" / PACKAGE, folder / PACKAGE) if place.is_dir()),
    folder,
  )
  return {name: (package / "dist" / name).read_bytes() for name in SHA256}


def _read_package(path: Path) -> dict[str, bytes]:
  with tarfile.open(path, "r:gz") as package:
    members = {name: package.extractfile(f"package/dist/{name}") for name in SHA256}
    if None in members.values():
      raise tarfile.TarError("it has a folder in the place of a file")
    return {name: member.read(MOST_BYTES) for name, member in members.items()}
