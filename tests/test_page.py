"""The page of filters: what it holds, and what a real browser makes of it."""

import base64
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from browser import BROWSER, FLAGS, in_a_browser
from helpers import HANGS

from gfnet_jax.views import page
from gfnet_jax.views.filters import FilterLayer, radial_profile
from gfnet_jax.views.page import make_page

TO_A_FILE = ("--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom")


def random_layers() -> list[FilterLayer]:
  """Odd, even and non-square; the last one an identity, a shift by (1, 2), and nothing."""
  rng, layers = np.random.default_rng(0), []
  for i, shape in enumerate([(5, 6, 3), (7, 7, 2), (6, 5, 3)]):
    kernel = rng.normal(size=shape)
    if i == 2:
      kernel[:] = 0
      kernel[0, 0, 0] = kernel[1, 2, 1] = 1
    layers.append(FilterLayer(f"blocks.{i}", i, kernel, np.fft.fft2(kernel, axes=(0, 1))))
  return layers


def decode(text: str) -> list[np.ndarray]:
  """The responses that a page holds, on the whole grid: (height, width, channels)."""
  data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
  responses = []
  for layer in data["layers"]:
    height, width, shown = layer["height"], layer["width"], layer["shown"]
    codes = {}
    for name, kind in (("scales", "<f4"), ("magnitudes", np.uint8), ("phases", np.uint8)):
      codes[name] = np.frombuffer(base64.b64decode(layer[name]), kind).astype(np.float64)
    shape = (shown, height, width // 2 + 1)
    magnitudes = codes["scales"][:, None, None] * (codes["magnitudes"].reshape(shape) / 255) ** 2
    half = magnitudes * np.exp(2j * np.pi * codes["phases"].reshape(shape) / 256)
    whole = np.zeros((shown, height, width), complex)
    whole[:, :, : shape[2]] = half
    for v in range(shape[2], width):
      whole[:, :, v] = np.conj(half[:, -np.arange(height), width - v])
    responses.append(whole.transpose(1, 2, 0))
  return responses


def test_the_page_holds_all_filters_to_eight_bits():
  layers = random_layers()
  for layer, response in zip(layers, decode(make_page(layers, "x")), strict=True):
    scale = np.abs(layer.response).max((0, 1))
    error = np.abs(np.abs(response) - np.abs(layer.response))
    assert (error <= scale * 1.01 / 255).all()
    turned = np.angle(response * np.conj(layer.response))
    assert np.abs(turned[np.abs(response) > 0]).max() <= np.pi / 256 + 1e-9


def test_a_name_cannot_end_the_script_or_the_title():
  name = "</script><script>alert(1)</script>\x1b[2J"
  text = make_page(random_layers(), name)
  assert "alert(1)</script>" not in text
  assert "\x1b" not in text
  assert "http" not in text, "nothing is loaded from elsewhere"


def test_a_page_of_too_many_filters_holds_the_first(monkeypatch):
  layers = random_layers()
  monkeypatch.setattr(page, "MOST_BYTES", 200)  # of 2 * (3 * 20 + 2 * 28 + 3 * 18)
  text = make_page(layers, "x")
  assert [response.shape[-1] for response in decode(text)] == [1, 1, 1]
  assert '"channels": 3, "shown": 1' in text


def browse(path: Path, *, anchor: str = "") -> str:
  """The elements of a page after its scripts, as text."""
  profile = path.parent / "profile"
  command = [BROWSER, *FLAGS, *TO_A_FILE, f"--user-data-dir={profile}", f"{path.as_uri()}{anchor}"]
  return subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANGS).stdout


def run_in_page(directory: Path, text: str, script: str, anchor: str = "") -> dict:
  """What a script, put behind those of the page, returns."""
  path = directory / "filters.html"
  wrapped = f"""<script>
    document.body.dataset.result = JSON.stringify((() => {{ {script} }})());
  </script>"""
  path.write_text(text.replace("</body>", f"{wrapped}</body>"))
  found = re.search(r'data-result="([^"]*)"', browse(path, anchor=anchor))
  assert found, "the script failed"
  return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&"))


USE = """
  const seen = [];
  const note = () => seen.push({
    layer: current.index, channel: current.channel, anchor: location.hash,
    magnitude: [...current.response.magnitude], phase: [...current.response.phase],
    kernel: [...current.kernel], profile: current.profile,
    mean: layerMean(current.layer),
    error: element("error").textContent, title: element("all-title").textContent,
    high: element("magnitude-high").textContent,
  });
  const change = (id, value, kind) => {
    element(id).value = value;
    element(id).dispatchEvent(new Event(kind));
    note();
  };
  const point = (id, kind, x, y) => {  // as parts of the picture
    const box = element(id).getBoundingClientRect();
    element(id).dispatchEvent(new PointerEvent(kind, {
      clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true}));
  };
  note();
  change("channel", 2, "input");
  change("slide", 1, "input");
  change("layer", 1, "change");
  change("channel", 2, "input");  // of 0 and 1
  change("layer", 2, "change");
  const {columns, across, down} = element("all").grid;
  const all = element("all");
  point("all", "click", 0.5 * across / all.width, 0.5 * down / all.height);
  note();
  point("kernel", "pointermove", 0.5, 0.5);
  const kernel = element("readout").textContent;
  point("magnitude", "pointermove", 0.99, 0.01);
  return {seen, kernel, magnitude: element("readout").textContent, layers:
    [...element("layer").options].map((option) => option.text)};
"""


@in_a_browser
def test_picking_layers_and_channels_in_a_browser(tmp_path):
  layers = random_layers()
  text = make_page(layers, "mine <b>")
  found = run_in_page(tmp_path, text, USE, anchor="#layer=0&channel=1")
  assert found["layers"] == ["0: blocks.0", "1: blocks.1", "2: blocks.2"]
  steps = [(step["layer"], step["channel"]) for step in found["seen"]]
  assert steps == [(0, 1), (0, 2), (0, 1), (1, 1), (1, 1), (2, 2), (2, 0)]
  errors = [step["error"] for step in found["seen"]]
  assert errors == [""] * 4 + ["channel is 2, expected 0 to 1"] + [""] * 2
  responses = decode(text)
  for step in found["seen"]:
    layer, channel = step["layer"], step["channel"]
    response = responses[layer][..., channel]
    shape = response.shape
    assert step["anchor"] == f"#layer={layer}&channel={channel}"
    assert step["title"].endswith(f"channels of {shape[0]} \u00d7 {shape[1]} tokens")
    magnitude, phase, kernel = (
      np.reshape(step[name], shape) for name in ("magnitude", "phase", "kernel")
    )
    np.testing.assert_allclose(magnitude * np.exp(1j * phase), response, atol=1e-9)
    # Half of the spectrum stands for the whole, as in irfft2; so it does in NumPy's.
    expected = np.fft.irfft2(response[:, : shape[1] // 2 + 1], s=shape)
    np.testing.assert_allclose(kernel, expected, atol=1e-9)
    assert step["high"] == f"{float(f'{magnitude.max():.3g}'):g}"
    for name, of in (("profile", responses[layer][..., [channel]]), ("mean", responses[layer])):
      radii, energy = radial_profile(of)
      np.testing.assert_allclose([point["radius"] for point in step[name]], radii)
      np.testing.assert_allclose([p["energy"] for p in step[name]], energy.mean(-1), atol=1e-9)
  # The known filters: an impulse in the centre of 6 x 5 tokens; ones of no phase.
  assert found["kernel"] == "Kernel at (0, 0) rows and columns from the token: 1"
  assert found["magnitude"].startswith(
    "Frequency (\u22123, 2), in cycles per grid: magnitude 1, phase"
  )
  assert "0°" in found["magnitude"]


@in_a_browser
@pytest.mark.parametrize(
  ("anchor", "message"),
  [
    ("#layer=3&channel=0", "layer is 3, expected 0 to 2"),
    ("#layer=length", "layer is length, expected 0 to 2"),
    ("#channel=99", "channel is 99, expected 0 to 2"),
  ],
)
@pytest.mark.slow
def test_an_address_that_is_out_of_range_is_answered(tmp_path, anchor, message):
  script = "return {error: element('error').textContent, layer: current.index};"
  found = run_in_page(tmp_path, make_page(random_layers(), "x"), script, anchor)
  assert found == {"error": message, "layer": 0}


@in_a_browser
def test_a_phone_needs_no_scrolling_sideways(tmp_path):
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(14, 14, 40))
  layers = [FilterLayer("blocks.0.11", 0, kernel, np.fft.fft2(kernel, axes=(0, 1)))]
  (tmp_path / "filters.html").write_text(make_page(layers, "a-name-of-a-run-that-is-long" * 4))
  wrapper = tmp_path / "phone.html"
  wrapper.write_text("""<!doctype html><body>
    <iframe src="filters.html" style="border: 0; width: 390px; height: 844px"></iframe>
    <script>
      const frame = document.querySelector("iframe");
      frame.onload = () => {
        const root = frame.contentDocument.documentElement;
        const widths = ["magnitude", "phase", "kernel", "profile", "all", "layer", "channel"].map(
          (id) => frame.contentDocument.getElementById(id).getBoundingClientRect())
          .map(({left, right}) => [left, right]);
        document.body.dataset.result = JSON.stringify(
          {inner: frame.contentWindow.innerWidth, scroll: root.scrollWidth, widths});
      };
    </script></body>""")
  found = json.loads(re.search(r'data-result="([^"]*)"', browse(wrapper))[1].replace("&quot;", '"'))
  assert found["inner"] == 390
  assert found["scroll"] <= 390
  assert all(0 <= left < right <= 390 for left, right in found["widths"])
  assert found["widths"][0][1] - found["widths"][0][0] > 150, "large enough to see"
