"""Downloads of weights: resumed when cut off, verified, kept in a cache."""

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
from gfnet_jax.torch_files import looks_like_html

# The model zoo of the official repository; no checksums are published.
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
  """The local file that a source stands for, downloaded if need be.

  Args:
    source: a path, an http(s) address, or the name of a variant for its official file.
    sha256: the expected SHA-256 sum in hexadecimal, of a local file too.
    cache: directory in which downloads are kept.

  Returns:
    Path of the complete file.

  Raises:
    UserError: for an address that fails or answers with a page of HTML, a download cut
      off for good (call again to go on), or another sum.
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
    _verify(partial, sha256, "run again to download it anew", discard=True)
    partial.rename(path)
  except OSError as error:
    raise UserError(f"cannot write {path} ({error}); choose another --cache") from error
  return path


def _cached_path(address: str, cache: Path) -> Path:
  """A name for an address, unlike those of all other addresses."""
  parts = urllib.parse.urlsplit(address)
  if parts.scheme not in ("http", "https") or not parts.hostname:
    raise UserError(f"cannot download {address}, expected an address like https://host/file.pth")
  digest = hashlib.sha256(address.encode()).hexdigest()[:16]
  name = re.sub(r"[^\w.-]", "_", Path(urllib.parse.unquote(parts.path)).name)
  return cache / f"{digest}-{name or 'weights'}"


def _download(address: str, partial: Path) -> None:
  """Downloads to a file, from where it ends, as long as every attempt brings more bytes.

  Raises:
    UserError: if one does not; the bytes are kept for the next call.
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
        f"cannot download {address} ({problem}, {_size(partial)} bytes are kept); run again to go "
        "on, or download it otherwise and give its path"
      )


def _download_rest(address: str, partial: Path) -> bool:
  """Appends to a file what it lacks; False if the connection ended before that."""
  offset = _size(partial)
  version = partial.with_name(partial.name + ".version")
  headers = {"User-Agent": "gfnet_jax", "Accept-Encoding": "identity"}
  if offset:
    headers["Range"] = f"bytes={offset}-"
    if version.exists():
      headers["If-Range"] = version.read_text()  # a file changed meanwhile comes whole
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
  """(first byte of a response, bytes of the whole file if told); `offset` was asked for."""
  if response.status != http.HTTPStatus.PARTIAL_CONTENT:
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None
  extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
  if not extent or int(extent[1]) != offset:
    raise http.client.HTTPException("the server sent another part than asked for")
  return offset, int(extent[2])


def _remember_version(response: http.client.HTTPResponse, path: Path) -> None:
  """Keeps what tells versions of a file apart, for the header If-Range."""
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
