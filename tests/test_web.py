"""The page that classifies images: how its folder is made, and what a real browser shows."""

import base64
import dataclasses
import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from browser import Page, in_a_browser, serve
from hypothesis import strategies as st
from PIL import Image
from scipy.special import softmax

import gfnet_jax
from gfnet_jax.data.transforms import eval_transform
from gfnet_jax.errors import UserError
from gfnet_jax.export import web_runtime
from gfnet_jax.inference.read_image import read_image
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.weights.files import write_state_dict
from gfnet_jax.weights.state_dict import to_torch_state_dict

pytest.importorskip("onnx", reason="no onnx; pip install onnx")

from gfnet_jax.export import web

CONFIG = dict(
  name="gfnet-ti", image_size=(40, 48), num_classes=7, patch_size=8, embed_dim=8, depth=1
)
NAMES = ["ant", "bee", "cat", "dog", "<b>eel</b>", "fox", "gnu"]
NO_IMAGE = "no image, damaged, or of a kind that this browser cannot read; try a JPEG or a PNG"
RUNTIME = os.environ.get("ONNXRUNTIME_WEB")  # the real package, of which the tests fetch nothing


def saved_model(**changes) -> SavedModel:
  config = CONFIG | changes
  model = gfnet_jax.create_model(**config)
  if model.head is not None:  # far from its small initial weights
    kernel = np.random.default_rng(0).standard_normal(model.head.kernel.shape, np.float32)
    model.head.kernel[...] = jnp.asarray(kernel)
  return SavedModel(model, config, NAMES)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
  """A packed package like that of npm, of small files with the sums of its own."""
  contents = {name: name.encode() * 100 for name in web_runtime.SHA256}
  sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
  monkeypatch.setattr(web_runtime, "SHA256", sums)
  path = tmp_path / "onnxruntime-web.tgz"
  with tarfile.open(path, "w:gz") as file:
    for name, content in contents.items():
      member = tarfile.TarInfo(f"package/dist/{name}")
      member.size = len(content)
      file.addfile(member, io.BytesIO(content))
  return path


def test_a_folder_holds_all_that_the_page_needs(tmp_path, package):
  folder = tmp_path / "page"
  report = gfnet_jax.export_model(saved_model(), folder, "web", runtime=package)
  files = {file.name: file for file in folder.iterdir()}
  assert report["bytes"] == sum(file.stat().st_size for file in files.values())
  facts = json.loads(files["model.json"].read_text())
  assert facts["class_names"] == NAMES and facts["image_size"] == [40, 48]
  assert facts["files"] == [
    {"name": name, "bytes": files[name].stat().st_size}
    for name in ("model.onnx", "ort-wasm-simd-threaded.wasm")
  ]
  texts = {
    name: file.read_text() for name, file in files.items() if file.suffix in (".js", ".html")
  }
  assert len(texts) == 7
  for name, text in texts.items():
    assert "//" not in text.replace("// ", "").replace("http://localhost", ""), name  # no address
    for other in ("page.css", "page.js", "worker.js", "decode.js", "exif.js", "resize.js"):
      assert other in files
  assert {"ort.wasm.bundle.min.js", "ort-wasm-simd-threaded.wasm"} < set(files)
  assert not [name for name in files if name.endswith(".mjs")], "not every server knows it"


def test_the_runtime_is_taken_from_wherever_npm_put_it(tmp_path, package):
  expected = web_runtime.find_runtime(package)
  with tarfile.open(package) as file:
    file.extractall(tmp_path, filter="data")
  installed = tmp_path / "site/node_modules/onnxruntime-web"
  shutil.copytree(tmp_path / "package", installed)
  for place in (tmp_path / "package", installed.parent, installed.parent.parent):
    assert web_runtime.find_runtime(place) == expected


def test_another_runtime_is_refused_and_leaves_nothing(tmp_path, package):
  def export(runtime):
    gfnet_jax.export_model(saved_model(), tmp_path / "page", "web", runtime=runtime)

  damaged = tmp_path / "damaged.tgz"
  damaged.write_bytes(package.read_bytes()[:-100])
  folder = tmp_path / "folder.tgz"
  with tarfile.open(folder, "w:gz") as file:
    for name in web_runtime.SHA256:
      member = tarfile.TarInfo(f"package/dist/{name}")
      member.type = tarfile.DIRTYPE
      file.addfile(member)
  for place in (damaged, folder, tmp_path / "none.tgz", tmp_path):
    with pytest.raises(UserError, match=r"^cannot read .*; expected onnxruntime-web 1\.30\.0, as"):
      export(place)
  web_runtime.SHA256["ort.wasm.bundle.min.mjs"] = "0" * 64
  with pytest.raises(
    UserError, match=r"^ort\.wasm\.bundle\.min\.mjs in .* is another one; expected"
  ):
    export(str(package))
  assert not list(tmp_path.glob("page*"))


@pytest.mark.slow
@hypothesis.settings(
  max_examples=500, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(st.data())
def test_a_damaged_package_is_refused_in_a_line(package, data):
  """One changed byte, or a cut: the same files, or a refusal."""
  content = bytearray(package.read_bytes())
  place = data.draw(st.integers(0, len(content) - 1))
  if data.draw(st.booleans()):
    content[place] ^= data.draw(st.integers(1, 255))
  else:
    del content[place:]
  damaged = package.with_name("damaged.tgz")
  damaged.write_bytes(content)
  try:
    assert web_runtime.find_runtime(damaged) == web_runtime.find_runtime(package)
  except UserError as error:
    assert "\n" not in str(error) and web_runtime.ADVICE in str(error)


def test_npm_fetches_the_runtime(tmp_path, package, monkeypatch):
  monkeypatch.setenv("PATH", "")
  with pytest.raises(UserError, match=r"there is no npm; install Node\.js, or fetch .* --runtime"):
    web_runtime.find_runtime()
  tools = tmp_path / "tools"
  tools.mkdir()
  npm = tools / "npm"
  npm.write_text(
    f'#!/bin/sh\n[ "$*" = "pack onnxruntime-web@1.30.0 --silent" ] && /bin/cp {package} .\n'
  )
  npm.chmod(0o755)
  monkeypatch.setenv("PATH", str(tools))
  assert web_runtime.find_runtime() == web_runtime.find_runtime(package)
  npm.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
  with pytest.raises(UserError, match=r"^npm cannot fetch onnxruntime-web 1\.30\.0 \(no network"):
    web_runtime.find_runtime()


def test_a_page_needs_classes_and_colours(tmp_path, package):
  for changes, reason in (
    (dict(num_classes=0), r"no head \(num_classes is 0\).* export it as onnx"),
    (dict(in_dim=1), r"images of 1 channels, .* export it as onnx, with --input float32"),
  ):
    with pytest.raises(UserError, match=reason):
      gfnet_jax.export_model(saved_model(**changes), tmp_path / "page", "web", runtime=package)


def test_what_lies_beside_the_folder_stays(tmp_path, package):
  """Whatever its name; and a folder may be read by a server that is another user."""
  other = tmp_path / "page.tmp"
  other.mkdir(mode=0o755)
  (other / "mine").write_text("mine")
  gfnet_jax.export_model(saved_model(), tmp_path / "page", "web", runtime=package)
  assert (other / "mine").read_text() == "mine"
  assert {path.name for path in tmp_path.iterdir()} == {package.name, "page", "page.tmp"}
  assert (tmp_path / "page").stat().st_mode == other.stat().st_mode


def test_an_interrupted_export_leaves_nothing(tmp_path, package, monkeypatch):
  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(Path, "rename", interrupt)
  with pytest.raises(KeyboardInterrupt):
    gfnet_jax.export_model(saved_model(), tmp_path / "page", "web", runtime=package)
  assert not list(tmp_path.glob("page*"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> tuple[SavedModel, Path]:
  """An official file whose weights are far from the initial ones, and the folder of its page."""
  if not RUNTIME:
    pytest.skip(f"ONNXRUNTIME_WEB names no package; {web_runtime.ADVICE}")
  directory = tmp_path_factory.mktemp("converted")
  rng = np.random.default_rng(0)
  weights = {
    name: array + rng.standard_normal(array.shape, np.float32) * 0.5 / array.shape[-1] ** 0.5
    for name, array in to_torch_state_dict(
      gfnet_jax.create_model("gfnet-ti", num_classes=7)
    ).items()
  }
  weights["head.weight"] *= 20
  write_state_dict(directory / "seven.safetensors", weights)
  saved = gfnet_jax.load_model(directory / "seven.safetensors")
  saved = dataclasses.replace(saved, class_names=NAMES)
  gfnet_jax.export_model(saved, directory / "page", "web", runtime=RUNTIME)
  return saved, directory / "page"


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
  """Coloured blots: what resizing has to get right is in them, and JPEG keeps most of it."""
  rng = np.random.default_rng(height + width)
  blots = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, channels), np.uint8)
  image = Image.fromarray(blots[:, :, 0] if channels == 1 else blots)
  return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def write_images(directory: Path) -> list[Path]:
  """Ten files: sizes, formats, a camera's rotation, grey, transparent, a palette."""
  turned = Image.Exif()
  turned[0x0112] = 6  # a quarter turn
  transparent = np.array(photo(300, 310, 4))
  transparent[::2, :, 3] = 0
  for name, image, options in [
    ("large.jpg", photo(1800, 2400), dict(quality=90)),
    ("tall.jpg", photo(700, 400), dict(subsampling=2, progressive=True)),
    ("small.png", photo(60, 90), {}),
    ("thin.png", photo(40, 2000), {}),
    ("of-the-size.png", photo(224, 224), {}),
    ("turned.jpg", photo(480, 640), dict(exif=turned, quality=95)),
    ("grey.png", photo(333, 257, 1), {}),
    ("transparent.png", transparent, {}),
    ("photo.webp", photo(250, 300), dict(quality=80)),
  ]:
    Image.fromarray(image).save(directory / name, **options)
  Image.fromarray(photo(200, 300)).quantize(64).save(directory / "palette.gif")
  return sorted(directory.iterdir())


def shown(page: Page) -> dict[str, float]:
  """The probabilities on the page by class."""
  return dict(
    page.evaluate("""[...document.querySelectorAll("#classes li")].map((row) =>
      [row.querySelector(".class").textContent, Number(row.querySelector("data").value)])""")
  )


def text(page: Page, name: str) -> str:
  return page.evaluate(f'document.getElementById("{name}").textContent')


def wait_for_result(page: Page, file: Path) -> None:
  page.wait_until(f"""document.getElementById("name").textContent === "{file.name}"
    && !document.getElementById("result").classList.contains("stale")""")


@pytest.mark.slow
@in_a_browser
def test_images_are_resized_as_by_pillow_to_the_bit(tmp_path):
  """Of many shapes, for many image sizes: larger, smaller, thin, of noise with full contrast."""
  rng = np.random.default_rng(0)
  with serve(web.PAGE) as (address, _), Page(tmp_path / "profile", address) as page:
    page.evaluate("""(async () => {
      const { evaluationCrop } = await import("./resize.js");
      window.resize = (text, ...sizes) => btoa(String.fromCharCode(...evaluationCrop(
        Uint8ClampedArray.from(atob(text), (one) => one.charCodeAt(0)), ...sizes)));
    })()""")

    def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
      height, width, _ = pixels.shape
      rgba = base64.b64encode(np.dstack([pixels, pixels[:, :, :1]]).tobytes()).decode()
      result = page.evaluate(f'resize("{rgba}", {width}, {height}, {list(size)})')
      return np.frombuffer(base64.b64decode(result), np.uint8).reshape(*size, 3)

    for _ in range(100):
      height, width = (int(side) for side in np.exp(rng.uniform(0, 6, 2)))
      size = tuple(int(side) for side in rng.integers(33, 150, 2))
      pixels = rng.choice([0, 255], (height, width, 3)).astype(np.uint8)
      expected = eval_transform(Image.fromarray(pixels), size)
      np.testing.assert_array_equal(
        resize(pixels, size), expected, err_msg=f"{pixels.shape}, {size}"
      )
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(resize(pixels, (8, 8)), pixels)
    with pytest.raises(AssertionError, match=r"an image of 8x8 \(height x width\), expected 8x16"):
      resize(pixels, (8, 16))


@pytest.mark.slow
@in_a_browser
def test_the_page_says_what_predict_says(converted, tmp_path):
  saved, folder = converted
  images = tmp_path / "images"
  images.mkdir()
  files = write_images(images)
  assert len(files) == 10
  expected = {
    file: {one.class_name: one.probability for one in best}
    for file, best in zip(files, saved.predict(files, top=7), strict=True)
  }
  vectors = np.array([[of_file[name] for name in NAMES] for of_file in expected.values()])
  differences = np.abs(vectors[:, None] - vectors[None]).max(-1) + np.eye(10)
  assert differences.min() > 1e-3, "no two are alike"
  with serve(folder) as (address, asked), Page(tmp_path / "profile", address) as page:
    page.evaluate("""(async () => {
      const { decode } = await import("./decode.js");
      const { evaluationCrop } = await import("./resize.js");
      window.crop = async (file) => {
        const { pixels, width, height } = await decode(file);
        return Array.from(evaluationCrop(pixels, width, height, [224, 224]));
      };
      addEventListener("change", ({ target }) => { window.file = target.files[0]; }, true);
    })()""")
    for file in files:
      page.choose("#file", file)
      wait_for_result(page, file)
      found = shown(page)
      assert len(found) == 5 and list(found) == sorted(found, key=found.get, reverse=True)
      for name, probability in found.items():
        assert abs(probability - expected[file][name]) < 1e-4, (file.name, name)
      pixels = np.array(page.evaluate("crop(window.file)")).reshape(224, 224, 3)
      np.testing.assert_array_equal(pixels, read_image(file, (224, 224)), err_msg=file.name)
    loaded = page.evaluate("performance.getEntriesByType('resource').map(({ name }) => name)")
    assert all(name.startswith(address) for name in loaded)
  assert {line.partition(" ")[2] for line in asked} <= {"200", "304"}  # 304: unchanged since


@pytest.mark.slow
@in_a_browser
def test_a_server_that_isolates_the_page(converted, tmp_path):
  """So that the model runs on several cores."""
  saved, folder = converted
  file = tmp_path / "photo.png"
  Image.fromarray(photo(300, 400)).save(file)
  headers = dict(
    Cross_Origin_Opener_Policy="same-origin", Cross_Origin_Embedder_Policy="require-corp"
  )
  with serve(folder, **headers) as (address, _), Page(tmp_path / "profile", address) as page:
    page.choose("#file", file)
    wait_for_result(page, file)
    assert page.evaluate("crossOriginIsolated")
    found = shown(page)
  for one in saved.predict(file)[0]:
    assert abs(found[one.class_name] - one.probability) < 1e-4


@pytest.mark.slow
@in_a_browser
@pytest.mark.skipif(not RUNTIME, reason=f"ONNXRUNTIME_WEB names no package; {web_runtime.ADVICE}")
@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_smaller_weights_in_a_browser(weights, tmp_path):
  onnxruntime = pytest.importorskip("onnxruntime")
  saved = saved_model()
  gfnet_jax.export_model(saved, tmp_path / "page", "web", runtime=RUNTIME, weights=weights)
  file = tmp_path / "photo.png"
  Image.fromarray(photo(100, 120)).save(file)
  session = onnxruntime.InferenceSession(tmp_path / "page/model.onnx")
  pixels = read_image(file, (40, 48))
  expected = dict(
    zip(NAMES, softmax(session.run(None, {"images": pixels[None]})[0][0]), strict=True)
  )
  with serve(tmp_path / "page") as (address, _), Page(tmp_path / "profile", address) as page:
    page.choose("#file", file)
    wait_for_result(page, file)
    found = shown(page)
  for name, probability in found.items():
    assert abs(probability - expected[name]) < 2e-3


@pytest.mark.slow
@in_a_browser
def test_loading_dropping_pasting_and_files_that_are_no_images(converted, tmp_path):
  saved, folder = converted
  photo_file, notes, empty = (tmp_path / name for name in ("photo.png", "notes.txt", "empty.jpg"))
  Image.fromarray(photo(300, 400)).save(photo_file)
  notes.write_text("no image")
  empty.touch()
  best = saved.predict(photo_file)[0][0].class_name
  record = """addEventListener("DOMContentLoaded", () => {
    window.seen = [];
    new MutationObserver(() => seen.push([document.getElementById("status").textContent,
      document.getElementById("progress").value])).observe(
        document.getElementById("status"), { childList: true });
  })"""
  with serve(folder) as (address, _), Page(tmp_path / "profile", address, record) as page:
    page.choose("#file", photo_file)  # before the model is there
    wait_for_result(page, photo_file)
    steps = [(line, value) for line, value in page.evaluate("seen") if "of" in line]
    total = sum(file["bytes"] for file in json.loads((folder / "model.json").read_text())["files"])
    assert steps[-1] == (f"Loading the model: {total / 1e6:.1f} of {total / 1e6:.1f} MB", 1)
    values = [value for _, value in steps]
    assert len(set(values)) > 3 and values == sorted(values)
    assert next(iter(shown(page))) == best
    # By the keyboard's and the mouse's events, as browsers send them.
    page.evaluate("""(() => {
      const input = document.createElement("input");
      input.type = "file";
      input.id = "test";
      document.body.append(input);
      window.hand = (kind, Event, property, files) => {
        const data = new DataTransfer();
        for (const file of files) data.items.add(file);
        document.body.dispatchEvent(new Event(kind, { bubbles: true, [property]: data }));
      };
    })()""")
    page.choose("#test", photo_file)
    for how in ('"drop", DragEvent, "dataTransfer"', '"paste", ClipboardEvent, "clipboardData"'):
      page.evaluate(f"hand({how}, [])")
      assert text(page, "error") == "that was no file; choose, drop or paste an image"
      page.evaluate('document.getElementById("name").textContent = ""')
      page.evaluate(f'hand({how}, document.getElementById("test").files)')
      wait_for_result(page, photo_file)
      assert text(page, "error") == "" and next(iter(shown(page))) == best
    half = tmp_path / "half.jpg"
    Image.fromarray(photo(300, 400)).save(half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    for file, reason in (
      (half, NO_IMAGE),
      (notes, NO_IMAGE),
      (empty, "an empty file"),
    ):
      page.choose("#file", file)
      page.wait_until('document.getElementById("error").textContent')
      assert text(page, "error") == f"{file.name}: {reason}"
      assert page.evaluate('document.getElementById("result").className') == "stale"
      page.choose("#file", photo_file)
      wait_for_result(page, photo_file)
      assert text(page, "error") == ""
    for width in (1200, 360):  # a desk and a phone
      page.resize(width, 800)
      assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate('document.querySelector("#classes b")') is None, "names are text"


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("model.onnx", "cannot load model.onnx (404 File not found); copy the whole folder"),
    ("model.json", "cannot load model.json (404 File not found); copy the whole folder"),
    (
      "worker.js",
      "cannot start: a file is missing, or this browser is too old; copy the whole folder",
    ),
  ],
)
def test_an_incomplete_folder(converted, tmp_path, name, message):
  shutil.copytree(converted[1], tmp_path / "page")
  (tmp_path / "page" / name).unlink()
  with serve(tmp_path / "page") as (address, _), Page(tmp_path / "profile", address) as page:
    page.wait_until('document.getElementById("error").textContent')
    assert text(page, "error") == message
    assert page.evaluate('document.getElementById("loading").hidden')
    photo_file = tmp_path / "photo.png"
    Image.fromarray(photo(30, 40)).save(photo_file)
    page.choose("#file", photo_file)
    page.wait_until('document.getElementById("file").value === ""')
    assert text(page, "error") == message, "still to be read when an image is chosen"


@pytest.mark.slow
@in_a_browser
def test_files_of_two_exports_do_not_mix(converted, tmp_path):
  """A model that was cut off on its way to the server; then the whole one, at the same address."""
  folder = Path(shutil.copytree(converted[1], tmp_path / "page"))
  whole = (folder / "model.onnx").read_bytes()
  (folder / "model.onnx").write_bytes(whole[:-1])
  yesterday = (folder / "page.css").stat().st_mtime - 1e5  # browsers keep what is old for longer
  os.utime(folder / "model.onnx", (yesterday, yesterday))
  with serve(folder) as (address, _), Page(tmp_path / "profile", address) as page:
    page.wait_until('document.getElementById("error").textContent')
    assert text(page, "error") == (
      f"model.onnx has {len(whole) - 1} bytes, expected {len(whole)}; copy the whole folder again"
    )
    (folder / "model.onnx").write_bytes(whole)
    page.call("Page.navigate", url=f"{address}index.html")
    page.wait_until('document.getElementById("loading")?.hidden')
    assert text(page, "error") == ""


@pytest.mark.slow
@in_a_browser
def test_opened_as_a_file_it_says_what_to_do(converted, tmp_path):
  address = (converted[1] / "index.html").as_uri()
  with Page(tmp_path / "profile", address) as page:
    assert "python -m http.server" in text(page, "status")
