"""The part of the Hugging Face hub's API from which models are downloaded, on this machine."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
  """Serves models by name: directories, or the code by which the hub refuses them.

  Attributes:
    models: {"owner/name": directory or "RepoNotFound" or "GatedRepo"}.
    asked: (method, path) of every request.
    token: that a request must bear, if any.
    cut: after how many bytes of a file the connection ends, if at all.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.models: dict[str, Path | str] = {}
    self.asked: list[tuple[str, str]] = []
    self.token: str | None = None
    self.cut: int | None = None

  @property
  def address(self) -> str:
    return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
  server: Hub

  def do_HEAD(self) -> None:
    self._answer(with_content=False)

  def do_GET(self) -> None:
    self._answer(with_content=True)

  def log_message(self, *_) -> None:
    pass

  def _answer(self, *, with_content: bool) -> None:
    parts = self.path.lstrip("/").split("/", 4)
    if parts[2:3] != ["resolve"]:  # what the library asks besides
      self._refuse(404, "")
      return
    self.server.asked.append((self.command, self.path))
    owner, name, _, revision, file = parts
    found = self.server.models.get(f"{owner}/{name}", "RepoNotFound")
    if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
      found = "RepoNotFound"
    if isinstance(found, str):
      self._refuse(403 if found == "GatedRepo" else 401, found)
    elif revision not in ("main", "v1", COMMIT):
      self._refuse(404, "RevisionNotFound")
    elif not (found / file).is_file():
      self._refuse(404, "EntryNotFound")
    else:
      self._send((found / file).read_bytes(), with_content)

  def _refuse(self, status: int, code: str) -> None:
    self.send_response(status)
    self.send_header("X-Error-Code", code)
    self.send_header("X-Repo-Commit", COMMIT)
    self.send_header("Content-Length", "0")
    self.end_headers()

  def _send(self, content: bytes, with_content: bool) -> None:
    self.send_response(200)
    self.send_header("X-Repo-Commit", COMMIT)
    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    if with_content:
      self.wfile.write(content[: self.server.cut])


@contextmanager
def serving() -> Iterator[Hub]:
  """A hub without models."""
  with Hub() as hub:
    thread = threading.Thread(target=hub.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    try:
      yield hub
    finally:
      hub.shutdown()
      thread.join()
