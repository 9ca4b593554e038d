"""Downloads weights: resumes after an interruption, verifies, and keeps files in a cache."""

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tqdm

from gfnet_jax.errors import UserError
from gfnet_jax.text import printable
from gfnet_jax.weights.kinds import HEAD, HTML, other_kind
from gfnet_jax.weights.sizes import FILE_LIMIT

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
TIME_LIMIT = 6 * 3600  # seconds of one call, but for headers; the next one resumes
CHUNK = 1 << 20  # bytes
VERSION = re.compile(r"[\x20-\x7e]{1,200}")  # ETag or Last-Modified
NAME_LENGTH = 100  # of a cached file, without the digits in front


class _ConnectionFailedError(Exception):
  """The network, or what the server says, ended an attempt."""


def fetch(source: str, *, sha256: str | None = None, cache: Path = CACHE_DIRECTORY) -> Path:
  """Returns the local file that a source stands for, downloading it if necessary.

  Args:
    source: a path, an http(s) address, or the name of a variant for its official file.
    sha256: the expected SHA-256 sum in hexadecimal; checked for local files too.
    cache: the directory that keeps downloads.

  Returns:
    The path of the complete file.

  Raises:
    UserError: if the address fails, answers with a page or other text or with more than
      FILE_LIMIT bytes, the download stops making progress or takes longer than TIME_LIMIT
      (another call resumes it), or the sum is a different one.
  """
  if _is_file(source):
    _verify(Path(source), sha256, "is it the right file?")
    return Path(source)
  address = OFFICIAL_ADDRESSES.get(source, source)
  if "://" not in address:
    names = ", ".join(OFFICIAL_ADDRESSES)
    raise UserError(
      f"{printable(source)} is not a file, expected a file, an http(s) address or one of {names}"
    )
  try:
    path = _cached_path(address, cache.expanduser())
  except RuntimeError as error:  # nobody's home is known
    raise UserError(f"there is no directory {cache} ({error}); give another --cache") from error
  partial = path.with_name(path.name + ".partial")
  try:
    if path.exists():
      _refuse_other_kinds(address, path)
      _verify(path, sha256, "delete it to download it again")
      return path
    path.parent.mkdir(parents=True, exist_ok=True)
    _download(address, partial)
    _refuse_other_kinds(address, partial)
    _verify(partial, sha256, "run again to download it once more", discard=True)
    partial.rename(path)
  except OSError as error:
    raise UserError(f"cannot write {path} ({error}); choose another --cache") from error
  return path


def _is_file(source: str) -> bool:
  try:
    return Path(source).is_file()
  except (OSError, ValueError):  # too long for a name, or with a zero byte
    return False


def _cached_path(address: str, cache: Path) -> Path:
  """A file name for an address, different for every address."""
  try:
    parts = urllib.parse.urlsplit(address)
    port = parts.port  # a ValueError unless it is a number below 65536
  except ValueError:
    parts = port = None
  if (
    parts is None
    or parts.scheme not in ("http", "https")
    or not re.fullmatch(r"[\w.:\[\]-]+", parts.hostname or "", re.ASCII)
    or port == 0
    or re.search(r"[\x00-\x1f\x7f]", address)
  ):
    raise UserError(
      f"cannot download {printable(address)}, expected an address like https://host/file.pth"
    )
  digest = hashlib.sha256(address.encode(errors="surrogatepass")).hexdigest()[:16]
  name = urllib.parse.unquote(parts.path).rpartition("/")[2]
  name = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[-NAME_LENGTH:]
  return cache / f"{digest}-{name or 'weights'}"


def _download(address: str, partial: Path) -> None:
  """Downloads the rest of a file, trying again as long as every attempt adds bytes.

  Raises:
    UserError: if one adds none, or the time is up; the bytes so far are kept for the next
      call.
  """
  deadline = time.monotonic() + TIME_LIMIT
  while True:
    before = _size(partial)
    problem = "the connection ended early"
    try:
      if _download_rest(address, partial, deadline):
        return
    except _ConnectionFailedError as error:
      problem = printable(error)
    late = time.monotonic() > deadline
    if late or _size(partial) <= before:
      problem = f"it takes longer than {TIME_LIMIT} s" if late else problem
      raise UserError(
        f"cannot download {printable(address)} ({problem}, {_size(partial)} bytes are kept); run "
        "again to resume, or download it by other means and give its path"
      )


def _download_rest(address: str, partial: Path, deadline: float) -> bool:
  """Appends what a file still lacks; returns False if the connection ended too early."""
  offset = _size(partial)
  version = partial.with_name(partial.name + ".version")
  response = _request(address, offset, version)
  if response.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
    if response.headers.get("Content-Range") == f"bytes */{offset}":
      return True
    partial.unlink()
    return _download_rest(address, partial, deadline)

  with response:
    offset, total = _extent(response, offset)
    _check_length(address, total or 0, partial)
    with _network():
      chunk = response.read1(CHUNK)
    _remember_version(response, version)
    with (
      partial.open("ab" if offset else "wb") as file,
      tqdm.tqdm(total=total, initial=offset, unit="B", unit_scale=True, disable=None) as progress,
    ):
      while chunk:
        file.write(chunk)
        progress.update(len(chunk))
        _check_length(address, file.tell(), partial)
        if time.monotonic() > deadline:
          return False
        with _network():
          chunk = response.read1(CHUNK)
  if total is not None and _size(partial) < total:
    return False
  version.unlink(missing_ok=True)
  if total is not None and _size(partial) > total:  # as two downloads at once leave it
    partial.unlink()
    raise _ConnectionFailedError(f"more came than the {total} bytes that the server announced")
  return True


def _request(
  address: str, offset: int, version: Path
) -> http.client.HTTPResponse | urllib.error.HTTPError:
  """Asks for a file from an offset on; status 416 says that there is nothing."""
  headers = {"User-Agent": "gfnet_jax", "Accept-Encoding": "identity"}
  if offset:
    headers["Range"] = f"bytes={offset}-"
    known = version.read_text("ascii", errors="replace") if version.exists() else ""
    if VERSION.fullmatch(known):  # the whole file is sent if it has changed
      headers["If-Range"] = known
  # Spaces and letters outside of ASCII as servers expect them.
  address = urllib.parse.quote(address, safe="!#$%&'()*+,/:;=?@[]~", errors="surrogatepass")
  request = urllib.request.Request(address, headers=headers)
  with _network():
    try:
      response = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
      error.close()
      if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not offset:
        raise
      return error
    if not isinstance(response, http.client.HTTPResponse):
      response.close()
      raise urllib.error.URLError("it was redirected to another protocol than HTTP")
    return response


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Closes an answer whose address to go on to is none, which urllib leaves open."""

  def http_error_302(self, request, response, *others):
    try:
      return super().http_error_302(request, response, *others)
    except ValueError:
      response.close()
      raise

  http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


@contextmanager
def _network() -> Iterator[None]:
  """What goes wrong between us and the server, malformed answers included, ends an attempt."""
  try:
    yield
  except (OSError, http.client.HTTPException, ValueError) as error:
    raise _ConnectionFailedError(" ".join(str(error).split()) or type(error).__name__) from error


def _extent(response: http.client.HTTPResponse, offset: int) -> tuple[int, int | None]:
  """(position of a response in the file, size of the file if known); asked for `offset`."""
  if response.status != http.HTTPStatus.PARTIAL_CONTENT:
    length = response.headers.get("Content-Length")
    if length is not None and not re.fullmatch(r"[0-9]{1,18}", length):
      raise _ConnectionFailedError(f"the server says that the length is '{printable(length, 40)}'")
    return 0, None if length is None else int(length)
  extent = re.fullmatch(
    r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", response.headers.get("Content-Range", "")
  )
  if not extent or int(extent[1]) != offset or not offset <= int(extent[2]) < int(extent[3]):
    raise _ConnectionFailedError("the server sent a different part of the file")
  return offset, int(extent[3])


def _check_length(address: str, length: int, partial: Path) -> None:
  if length > FILE_LIMIT:
    partial.unlink(missing_ok=True)
    raise UserError(
      f"{printable(address)} has {length} bytes or more, expected at most {FILE_LIMIT}; is it the "
      "right address?"
    )


def _remember_version(response: http.client.HTTPResponse, path: Path) -> None:
  """Keeps what tells this version of a file from others, for the header If-Range."""
  tag = response.headers.get("ETag", "W/")
  version = response.headers.get("Last-Modified", "") if tag.startswith("W/") else tag
  if VERSION.fullmatch(version):
    path.write_text(version)
  else:
    path.unlink(missing_ok=True)


def _refuse_other_kinds(address: str, path: Path) -> None:
  """Removes a download that is plainly no file of weights, as servers send for an error.

  Raises:
    UserError: if it is one.
  """
  with path.open("rb") as file:
    head = file.read(HEAD)
  kind = other_kind(head)
  if head and not kind:
    return
  path.unlink()
  if kind is HTML:
    raise UserError(
      f"{printable(address)} answers with an HTML page, not a file; open it in a browser, download "
      "the file there and give its path"
    )
  found = f"a file that cannot be used: {kind}" if kind else "nothing at all; is it the right one?"
  raise UserError(f"{printable(address)} answers with {found}")


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
