"""Downloads weights: resumes after an interruption, verifies, and keeps files in a cache."""

import hashlib
import http.client
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import tqdm

from gfnet_jax.errors import UserError
from gfnet_jax.weights.kinds import looks_like_html

# The official repository's model zoo, which publishes no checksums.
OFFICIAL_ADDRESSES = {
  "gfnet-ti": "https://cloud.tsinghua.edu.cn/f/3d0c1579aa524a0a99dd/?dl=1",
  "gfnet-xs": "https://cloud.tsinghua.edu.cn/f/e0ab5b1583954a1fa9b2/?dl=1",
  "gfnet-s": "https://cloud.tsinghua.edu.cn/f/e5561fa070c44d9399bf/?dl=1",
  "gfnet-b": "https://cloud.tsinghua.edu.cn/f/2fbf264597af4d72afb3/?dl=1",
  "gfnet-h-ti": "https://cloud.tsinghua.edu.cn/f/b22dd45eccbe462cbbfb/?dl=1",
  "gfnet-h-s": "https://cloud.tsinghua.edu.cn/f/5229cb4d1daf48e69675/?dl=1",
  "gfnet-h-b": "https://cloud.tsinghua.edu.cn/f/954c5af21e824ba6b40c/?dl=1",
}
CACHE_DIRECTORY = Path("~/.cache/gfnet_jax")
TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 20  # bytes


def fetch(source: str, *, sha256: str | None = None, cache: Path = CACHE_DIRECTORY) -> Path:
  """Returns the local file that a source stands for, downloading it if necessary.

  Args:
    source: a path, an http(s) address, or the name of a variant for its official file.
    sha256: the expected SHA-256 sum in hexadecimal; checked for local files too.
    cache: the directory that keeps downloads.

  Returns:
    The path of the complete file.

  Raises:
    UserError: if the address fails or answers with an HTML page, the download stops
      making progress (another call resumes it), or the sum is a different one.
  """
  if Path(source).is_file():
    _verify(Path(source), sha256, "is it the right file?")
    return Path(source)
  address = OFFICIAL_ADDRESSES.get(source, source)
  if "://" not in address:
    names = ", ".join(OFFICIAL_ADDRESSES)
    raise UserError(f"{source} is no file, expected a file, an http(s) address or one of {names}")

  path = _cached_path(address, cache.expanduser())
  if path.exists():
    _verify(path, sha256, "delete it to download it again")
    return path
  partial = path.with_name(path.name + ".partial")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    _download(address, partial)
    _verify(partial, sha256, "run again to download it once more", discard=True)
    partial.rename(path)
  except OSError as error:
    raise UserError(f"cannot write {path} ({error}); choose another --cache") from error
  return path


def _cached_path(address: str, cache: Path) -> Path:
  """A file name for an address, different for every address."""
  parts = urllib.parse.urlsplit(address)
  if parts.scheme not in ("http", "https") or not parts.hostname:
    raise UserError(f"cannot download {address}, expected an address like https://host/file.pth")
  digest = hashlib.sha256(address.encode()).hexdigest()[:16]
  name = re.sub(r"[^\w.-]", "_", Path(urllib.parse.unquote(parts.path)).name)
  return cache / f"{digest}-{name or 'weights'}"


def _download(address: str, partial: Path) -> None:
  """Downloads the rest of a file, trying again as long as every attempt adds bytes.

  Raises:
    UserError: if one adds none; the bytes so far are kept for the next call.
  """
  while True:
    before = _size(partial)
    problem = "the connection ended early"
    try:
      if _download_rest(address, partial):
        return
    except (
      urllib.error.URLError,
      http.client.HTTPException,
      ConnectionError,
      TimeoutError,
      ssl.SSLError,
    ) as error:
      problem = " ".join(str(error).split())
    if _size(partial) <= before:
      raise UserError(
        f"cannot download {address} ({problem}, {_size(partial)} bytes are kept); run again to "
        "resume, or download it by other means and give its path"
      )


def _download_rest(address: str, partial: Path) -> bool:
  """Appends what a file still lacks; returns False if the connection ended too early."""
  offset = _size(partial)
  version = partial.with_name(partial.name + ".version")
  headers = {"User-Agent": "gfnet_jax", "Accept-Encoding": "identity"}
  if offset:
    headers["Range"] = f"bytes={offset}-"
    if version.exists():
      headers["If-Range"] = version.read_text()  # sends the whole file if it has changed
  try:
    response = urllib.request.urlopen(
      urllib.request.Request(address, headers=headers), timeout=TIMEOUT
    )
  except urllib.error.HTTPError as error:
    if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not offset:
      raise
    if error.headers.get("Content-Range") == f"bytes */{offset}":
      return True
    partial.unlink()
    return _download_rest(address, partial)

  with response:
    offset, total = _extent(response, offset)
    chunk = response.read1(CHUNK)
    if offset == 0 and looks_like_html(chunk):
      raise UserError(
        f"{address} answers with an HTML page, not a file; open it in a browser, download the file "
        "there and give its path"
      )
    _remember_version(response, version)
    with (
      partial.open("ab" if offset else "wb") as file,
      tqdm.tqdm(total=total, initial=offset, unit="B", unit_scale=True, disable=None) as progress,
    ):
      while chunk:
        file.write(chunk)
        progress.update(len(chunk))
        chunk = response.read1(CHUNK)
  if total is not None and _size(partial) < total:
    return False
  version.unlink(missing_ok=True)
  return True


def _extent(response: http.client.HTTPResponse, offset: int) -> tuple[int, int | None]:
  """(position of a response in the file, size of the file if known); asked for `offset`."""
  if response.status != http.HTTPStatus.PARTIAL_CONTENT:
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None
  extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
  if not extent or int(extent[1]) != offset:
    raise http.client.HTTPException("the server sent a different part of the file")
  return offset, int(extent[2])


def _remember_version(response: http.client.HTTPResponse, path: Path) -> None:
  """Keeps what tells this version of a file from others, for the header If-Range."""
  tag = response.headers.get("ETag", "W/")
  version = response.headers.get("Last-Modified") if tag.startswith("W/") else tag
  if version:
    path.write_text(version)


def _verify(path: Path, sha256: str | None, advice: str, *, discard: bool = False) -> None:
  """Raises a UserError unless a file has the expected SHA-256 sum, if any is expected."""
  if sha256 is None:
    return
  with path.open("rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest()
  if found != sha256.lower():
    if discard:
      path.unlink()
    raise UserError(f"{path} has SHA-256 sum {found}, expected {sha256.lower()}; {advice}")


def _size(path: Path) -> int:
  return path.stat().st_size if path.exists() else 0
