"""Downloads from a server on loopback: whole, cut off, resumed, refused."""

import hashlib
import http.server
import threading

import numpy as np
import pytest

import gfnet_jax
from gfnet_jax.errors import UserError
from gfnet_jax.weights import download
from gfnet_jax.weights.download import fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
  """Serves `content`; counts requests and can be told to misbehave."""

  content = CONTENT
  content_type = "application/octet-stream"
  etag = '"one"'
  status = 200
  ranges = True  # whether the header Range is honoured
  cut_after = None  # bytes of a body after which the connection is closed

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.requests = []

  @property
  def address(self):
    return f"http://127.0.0.1:{self.server_port}/files/gfnet-ti.pth?dl=1"


class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    server = self.server
    server.requests.append(dict(self.headers))
    content, start, status = server.content, 0, server.status
    asked = self.headers.get("Range")
    unchanged = self.headers.get("If-Range", server.etag) == server.etag
    if asked and server.ranges and unchanged:
      start, status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
      if start >= len(content):
        self.send_response(416)
        self.send_header("Content-Range", f"bytes */{len(content)}")
        self.end_headers()
        return
    self.send_response(status)
    if status == 206:
      self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    self.send_header("Content-Type", server.content_type)
    self.send_header("Content-Length", str(len(content) - start))
    if server.etag:
      self.send_header("ETag", server.etag)
    self.end_headers()
    stop = None if server.cut_after is None else start + server.cut_after
    self.wfile.write(content[start:stop])

  def log_message(self, *_):
    pass


@pytest.fixture
def server():
  with Server() as server:
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def test_a_file_is_downloaded_once_and_cached(server, tmp_path):
  path = fetch(server.address, sha256=SHA256.upper(), cache=tmp_path)
  assert path.read_bytes() == CONTENT
  assert path.name.endswith("gfnet-ti.pth")
  assert fetch(server.address, cache=tmp_path) == path
  assert len(server.requests) == 1
  assert list(tmp_path.iterdir()) == [path]


def test_a_cut_off_download_goes_on_by_itself(server, tmp_path):
  server.cut_after = 100_000
  assert fetch(server.address, cache=tmp_path).read_bytes() == CONTENT
  ranges = [request.get("Range") for request in server.requests]
  assert ranges == [None, "bytes=100000-", "bytes=200000-"]


@pytest.mark.parametrize("etag", ['"one"', 'W/"weak"', None])
def test_the_next_call_resumes(server, tmp_path, etag):
  server.etag = etag
  server.cut_after, server.ranges = 100_000, False  # the second attempt brings nothing new
  with pytest.raises(UserError, match="100000 bytes are kept"):
    fetch(server.address, cache=tmp_path)
  server.cut_after, server.ranges = None, True
  assert fetch(server.address, sha256=SHA256, cache=tmp_path).read_bytes() == CONTENT
  assert server.requests[-1]["Range"] == "bytes=100000-"
  assert len(list(tmp_path.iterdir())) == 1


def test_a_server_that_ignores_ranges_sends_all_again(server, tmp_path):
  server.cut_after, server.ranges = 100_000, False
  with pytest.raises(UserError):
    fetch(server.address, cache=tmp_path)
  server.cut_after = None
  assert fetch(server.address, cache=tmp_path).read_bytes() == CONTENT


def test_two_versions_of_a_file_are_never_mixed(server, tmp_path):
  server.cut_after, server.ranges = 100_000, False
  with pytest.raises(UserError):
    fetch(server.address, cache=tmp_path)
  server.cut_after, server.ranges = None, True
  server.content, server.etag = CONTENT[::-1], '"two"'
  assert fetch(server.address, cache=tmp_path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("kept", [CONTENT, CONTENT + b"more"])
def test_a_partial_file_of_full_length_is_completed(server, tmp_path, kept):
  path = fetch(server.address, cache=tmp_path)
  path.unlink()
  path.with_name(path.name + ".partial").write_bytes(kept)
  assert fetch(server.address, sha256=SHA256, cache=tmp_path).read_bytes() == CONTENT


def test_a_wrong_sum_is_refused_and_not_cached(server, tmp_path):
  with pytest.raises(UserError, match=f"has SHA-256 sum {SHA256}, expected {'0' * 64}"):
    fetch(server.address, sha256="0" * 64, cache=tmp_path)
  assert list(tmp_path.iterdir()) == []
  path = fetch(server.address, cache=tmp_path)
  with pytest.raises(UserError, match="delete it to download it again"):
    fetch(server.address, sha256="0" * 64, cache=tmp_path)
  assert path.exists()


def test_a_page_of_html_is_recognised(server, tmp_path):
  server.content = b"\n<!DOCTYPE html><html><body>Too many requests</body></html>"
  with pytest.raises(UserError, match="answers with an HTML page"):
    fetch(server.address, cache=tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_server_is_told(server, tmp_path):
  server.status = 404
  with pytest.raises(UserError, match="404"):
    fetch(server.address, cache=tmp_path)
  assert len(server.requests) == 1


def test_a_silent_server_times_out(tmp_path, monkeypatch):
  monkeypatch.setattr(download, "TIMEOUT", 0.2)
  with Server() as server, pytest.raises(UserError, match="timed out"):
    fetch(server.address, cache=tmp_path)  # listens, but nobody serves


@pytest.mark.parametrize("source", ["nowhere.pth", "gfnet-xxl"])
def test_what_is_no_source_is_told(source):
  with pytest.raises(UserError, match="is no file, expected a file, an http"):
    fetch(source)


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://host/file", "http:///file"])
def test_only_http_is_downloaded(address, tmp_path):
  with pytest.raises(UserError, match="cannot download"):
    fetch(address, cache=tmp_path)


def test_a_local_file_is_taken_as_it_is(tmp_path):
  path = tmp_path / "weights.pth"
  path.write_bytes(CONTENT)
  assert fetch(str(path), sha256=SHA256) == path
  with pytest.raises(UserError, match="expected 0000"):
    fetch(str(path), sha256="0" * 64)


def test_the_name_of_a_variant_stands_for_its_address(server, tmp_path, monkeypatch):
  monkeypatch.setitem(download.OFFICIAL_ADDRESSES, "gfnet-ti", server.address)
  assert fetch("gfnet-ti", cache=tmp_path).read_bytes() == CONTENT


def test_every_variant_has_an_official_address():
  assert list(download.OFFICIAL_ADDRESSES) == gfnet_jax.list_models()
  assert len(set(download.OFFICIAL_ADDRESSES.values())) == 7
