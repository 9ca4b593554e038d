"""Downloads from a server on loopback: whole, cut off, resumed, refused."""

import hashlib
import http.server
import socket
import threading
from pathlib import Path

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


def test_a_cut_off_download_continues_by_itself(server, tmp_path):
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
  with pytest.raises(UserError, match="is not a file, expected a file, an http"):
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


# --- servers that misbehave ----------------------------------------------------------------


class RawServer:
  """Answers every connection with the next of some byte strings, the last one again and again."""

  def __init__(self, *answers):
    self.answers = list(answers)
    self.listener = socket.create_server(("127.0.0.1", 0))
    self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}/weights.pth"
    self.thread = threading.Thread(target=self._serve)

  def _serve(self):
    while True:
      connection, _ = self.listener.accept()
      with connection:
        request = connection.recv(65536)
        if request == b"stop":
          return
        connection.sendall(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])

  def __enter__(self):
    self.thread.start()
    return self

  def __exit__(self, *_):
    with socket.create_connection(self.listener.getsockname()) as connection:
      connection.sendall(b"stop")
    self.thread.join()
    self.listener.close()


def answer(*headers, body=b"weights\x00", status="200 OK"):
  lines = [f"HTTP/1.1 {status}", "Connection: close", *headers, "", ""]
  return "\r\n".join(lines).encode("latin-1") + body


def refused(address, cache, match):
  with pytest.raises(UserError, match=match) as caught:
    fetch(address, cache=cache)
  assert str(caught.value).isprintable()
  assert len(str(caught.value)) < 700
  assert not [path for path in cache.glob("*") if not path.name.endswith((".partial", ".version"))]


@pytest.mark.parametrize(
  ("reply", "match"),
  [
    (answer("Content-Length: " + "9" * 30), "the server says that the length is '9999"),
    (answer("Content-Length: " + "9" * 5000), "the server says that the length is '9999"),
    (answer("Content-Length: -8"), "the server says that the length is '-8'"),
    (answer("Content-Length: eight"), "the server says that the length is 'eight'"),
    (answer("Content-Length: 8, 8"), "the server says that the length is '8, 8'"),
    (answer(f"Content-Length: {10**15}"), "has 1000000000000000 bytes or more, expected at most"),
    (answer("Transfer-Encoding: chunked", body=b"zz\r\nweights\x00"), "cannot download"),
    (answer("Transfer-Encoding: chunked", body=b"f" * 5000 + b"\r\n"), "cannot download"),
    (answer("Location: http://[::1/x", status="302 Found"), "cannot download"),
    (answer("Location: http://host:port/x", status="302 Found"), "cannot download"),
    (answer("Location: file:///etc/passwd", status="302 Found"), "cannot download"),
    (answer("Location: http://\u00fc\u00df..x/", status="301 Moved"), "cannot download"),
    (answer("Location: /again", status="307 Temporary"), "cannot download"),
    (answer(status="404 Not\x1b[2JFound"), r"Not\\x1b\[2JFound"),
    (answer(status="500 " + "x" * 60_000), "500"),
    (answer(status="999999 What"), "cannot download"),
    (b"SSH-2.0-OpenSSH_9\r\n", "cannot download"),
    (b"", "cannot download"),
    (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200, "cannot download"),
    (answer("Content-Length: 0", body=b""), "answers with nothing at all"),
    (answer(status="204 No Content", body=b""), "answers with nothing at all"),
    (answer(body=b"<?xml version='1.0'?><Error/>"), "answers with a file .* a text file"),
    (answer(body=b'{"message": "rate limit"}'), "answers with a file .* a text file"),
    (answer(body=b"version https://git-lfs.github.com/spec/v1\n"), "a pointer of Git LFS"),
    (answer(body=b"   <!doctype HTML>"), "answers with an HTML page"),
  ],
)
def test_absurd_answers_are_told_in_one_line_and_not_kept(tmp_path, reply, match):
  with RawServer(reply) as server:
    refused(server.address, tmp_path, match)


@pytest.mark.parametrize(
  "extent",
  [
    "bytes 0-7/8",
    "bytes 4-7/" + "9" * 5000,
    "bytes 4-99/8",
    "bytes 4-2/8",
    "bytes -4-7/8",
    "bytes 4-7/*",
    "bytes \u00b2-7/8",
    "furlongs 4-7/8",
    "",
  ],
)
def test_absurd_extents_are_told_and_what_is_there_is_kept(tmp_path, extent):
  whole = b"\x80\x00weight"
  cut = answer("Content-Length: 8", body=whole[:4])
  with RawServer(
    cut, answer(f"Content-Range: {extent}", body=whole[4:], status="206 Partial")
  ) as server:
    refused(server.address, tmp_path, "a different part of the file, 4 bytes are kept")
    server.answers = [
      answer("Content-Range: bytes 4-7/8", body=whole[4:], status="206 Partial Content")
    ]
    assert fetch(server.address, cache=tmp_path).read_bytes() == whole


@pytest.mark.parametrize("tag", ["\x7f\x01", "\u00e9", "x" * 5000])
def test_a_version_that_cannot_be_sent_back_is_not_remembered(tmp_path, tag):
  cut = answer("Content-Length: 8", f"ETag: {tag}", body=b"\x80\x00we")
  rest = answer("Content-Range: bytes 4-7/8", body=b"ghts", status="206 Partial Content")
  with RawServer(cut, rest) as server:
    assert fetch(server.address, cache=tmp_path).read_bytes() == b"\x80\x00weghts"


def test_a_damaged_note_of_the_version_is_passed_over(server, tmp_path):
  server.cut_after, server.ranges = 100_000, False
  with pytest.raises(UserError):
    fetch(server.address, cache=tmp_path)
  (note,) = tmp_path.glob("*.version")
  note.write_bytes(b"\xff\n\x00")
  server.cut_after, server.ranges = None, True
  assert fetch(server.address, sha256=SHA256, cache=tmp_path).read_bytes() == CONTENT


def test_a_body_without_end_is_cut_at_the_limit(server, tmp_path, monkeypatch):
  monkeypatch.setattr(download, "FILE_LIMIT", 200_000)
  monkeypatch.setattr(download, "CHUNK", 50_000)
  with RawServer(answer(body=CONTENT)) as raw:
    refused(raw.address, tmp_path, "has 2[0-9]* bytes or more, expected at most 200000")
  refused(server.address, tmp_path, "has 300000 bytes or more, expected at most 200000")
  assert list(tmp_path.iterdir()) == []


def test_a_download_that_takes_too_long_is_kept_for_the_next_call(server, tmp_path, monkeypatch):
  server.cut_after = 100_000
  seconds = iter(range(0, 10**9, download.TIME_LIMIT // 2 + 1))
  monkeypatch.setattr(download.time, "monotonic", lambda: next(seconds))
  refused(server.address, tmp_path, "it takes longer than 21600 s, [1-9][0-9]* bytes are kept")
  monkeypatch.undo()
  assert fetch(server.address, sha256=SHA256, cache=tmp_path).read_bytes() == CONTENT


def test_more_than_was_announced_is_thrown_away(server, tmp_path):
  path = fetch(server.address, cache=tmp_path)
  partial = path.with_name(path.name + ".partial")
  path.rename(partial)
  partial.write_bytes(CONTENT[:-10])
  reply = answer(
    f"Content-Range: bytes {len(CONTENT) - 10}-{len(CONTENT) - 1}/{len(CONTENT)}",
    body=CONTENT[-10:] + b"more",
    status="206 Partial Content",
  )
  with RawServer(reply) as raw:
    other = download._cached_path(raw.address, tmp_path)
    partial.rename(other.with_name(other.name + ".partial"))
    refused(raw.address, tmp_path, "more came than the 300000 bytes")
  assert list(tmp_path.iterdir()) == []


def test_a_page_that_was_kept_as_weights_is_removed(server, tmp_path):
  path = fetch(server.address, cache=tmp_path)
  path.write_text("<html>Sign in</html>")
  with pytest.raises(UserError, match="answers with an HTML page"):
    fetch(server.address, cache=tmp_path)
  assert fetch(server.address, sha256=SHA256, cache=tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
  "address",
  [
    "http://[::1/weights.pth",
    "http://host:99999/weights.pth",
    "http://host:port/weights.pth",
    "http://host:0/weights.pth",
    "http://ho st/weights.pth",
    "http://host/wei\nghts.pth",
    "http://host/\x00",
    "http://\u2100/weights.pth",
    "http://f\u00fcr.example/weights.pth",
    "https:///",
    "data://text",
    "http://host/\x1b[2J",
  ],
)
def test_malformed_addresses_are_told(tmp_path, address):
  refused(address, tmp_path, "cannot download .*expected an address like https://host/file.pth")


@pytest.mark.parametrize("source", ["x" * 5000, "a/" * 3000, "nul\x00", "line\nbreak", "\udc80"])
def test_what_cannot_even_be_a_name_is_told(tmp_path, source):
  refused(source, tmp_path, "is not a file, expected a file, an http")


@pytest.mark.parametrize(
  "name", ["x" * 3000 + ".pth", "gew\u00e4hlt \u2713.pth", "%2F..%2Fa.pth", ""]
)
def test_names_of_any_length_and_alphabet_are_downloaded(server, tmp_path, name):
  path = fetch(f"http://127.0.0.1:{server.server_port}/{name}", sha256=SHA256, cache=tmp_path)
  assert path.parent == tmp_path
  assert len(path.name) < 150 and path.name.isascii()


def test_a_cache_that_cannot_be_is_told(server, tmp_path):
  (tmp_path / "file").touch()
  for cache in (tmp_path / "file", tmp_path / "file" / "below", Path("~nobody-of-this-name/x")):
    with pytest.raises(UserError, match="another --cache"):
      fetch(server.address, cache=cache)
  assert not server.requests
