"""A headless Chromium, driven through a pipe by its DevTools protocol; a static server for it."""

import base64
import functools
import http.server
import itertools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
# No services of the desktop and no network but this machine's; as root, no sandbox.
FLAGS = (
  *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
  *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
  "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
in_a_browser = pytest.mark.skipif(
  not BROWSER, reason="no Chromium; on Debian: apt-get install chromium"
)


@contextmanager
def serve(directory: Path, **headers: str) -> Iterator[tuple[str, list[str]]]:
  """A static server of a folder: its address, and the paths that it was asked for.

  It does not know that .mjs are scripts, as many do not.

  Args:
    directory: the folder.
    **headers: of every answer, with _ for -.
  """
  asked = []

  class Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map: ClassVar = {
      **http.server.SimpleHTTPRequestHandler.extensions_map,
      ".mjs": "application/octet-stream",
    }

    def end_headers(self):
      for name, value in headers.items():
        self.send_header(name.replace("_", "-"), value)
      super().end_headers()

    def log_request(self, code="-", size="-"):
      asked.append(f"{self.path} {int(code)}")

  handler = functools.partial(Handler, directory=str(directory))
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()


class Page:
  """A page in a browser of its own.

  Args:
    profile: an empty directory for the browser.
    address: of the page.
    script: runs in the page before its own.
  """

  def __init__(self, profile: Path, address: str, script: str = ""):
    # The browser reads commands from descriptor 3, and writes to 4.
    from_us, self._to = os.pipe()
    self._from, to_us = os.pipe()
    command = f'exec 3<&{from_us} 4>&{to_us}; exec "$@"'
    flags = (*FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank")
    self._browser = subprocess.Popen(
      ["bash", "-c", command, "bash", BROWSER, *flags],
      pass_fds=(from_us, to_us),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(to_us)
    self._numbers, self._session, self._rest = itertools.count(1), None, b""
    self._events = []  # names of what has happened
    targets = self.call("Target.getTargets")["targetInfos"]
    target = next(target["targetId"] for target in targets if target["type"] == "page")
    self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    self.call("Page.enable")
    self.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    self.call("Page.navigate", url=address)
    while "Page.loadEventFired" not in self._events:
      self._read()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._session = None
    self.call("Browser.close")
    self._browser.wait()
    os.close(self._to)
    os.close(self._from)

  def call(self, method: str, **parameters) -> dict[str, Any]:
    """A command of the protocol and its result."""
    message = {"id": next(self._numbers), "method": method, "params": parameters}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._to, json.dumps(message).encode() + b"\0")
    while True:
      answer = self._read()
      if answer.get("id") == message["id"]:
        assert "error" not in answer, (method, answer)
        return answer["result"]

  def _read(self) -> dict[str, Any]:
    while b"\0" not in self._rest:
      more = os.read(self._from, 1 << 20)
      assert more, "the browser is gone"
      self._rest += more
    message, _, self._rest = self._rest.partition(b"\0")
    message = json.loads(message)
    if "method" in message:
      self._events.append(message["method"])
    return message

  def evaluate(self, script: str) -> Any:
    """The value of an expression in the page, of a promise once it is there."""
    result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
    assert "exceptionDetails" not in result, result["exceptionDetails"]
    return result["result"].get("value")

  def wait_until(self, condition: str) -> None:
    """Waits until an expression holds, looking at every frame that the page draws."""
    self.evaluate(f"""new Promise((resolve) => {{
      const look = () => ({condition}) ? resolve() : setTimeout(look, 20);
      look();
    }})""")

  def choose(self, selector: str, *files: Path) -> None:
    """Picks files in an input element, as its dialogue does."""
    root = self.call("DOM.getDocument")["root"]["nodeId"]
    node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
    self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

  def resize(self, width: int, height: int) -> None:
    """Gives the page a width and a height in pixels, those of a phone if they are small."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 600,
    )

  def screenshot(self, path: Path) -> None:
    """Writes a PNG of what is to be seen."""
    path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
