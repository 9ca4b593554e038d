"""tools/predict.py: the same classes as the model gives, as a table and as JSON."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import gfnet_jax
from gfnet_jax.checkpoints.model import save_model
from gfnet_jax.data.decode import decode_image
from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.data.transforms import eval_transform

CONFIG = dict(
  name="gfnet-ti", image_size=(48, 40), num_classes=7, patch_size=8, embed_dim=8, depth=1
)
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


@pytest.fixture(scope="module")
def model():
  return gfnet_jax.create_model(**CONFIG)


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
  directory = tmp_path_factory.mktemp("predict")
  save_model(directory / "named", model, CONFIG, NAMES)
  save_model(directory / "unnamed", model, CONFIG)
  rng = np.random.default_rng(0)
  (directory / "images/inner").mkdir(parents=True)
  for name in ("b.png", "a.JPEG", "inner/c.gif"):
    pixels = rng.integers(0, 256, (60, 70, 3), np.uint8)
    Image.fromarray(pixels).save(directory / "images" / name)
  (directory / "images/notes.txt").write_text("no image")
  return directory


@pytest.fixture
def predict(in_process):
  """predict(*arguments) -> (exit code, standard output, standard error)."""
  return functools.partial(in_process, "tools/predict.py")


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_json_lines_hold_what_the_model_gives(directory, model, predict, batch_size):
  code, output, _ = predict(
    directory / "named", directory / "images", "--json", "--top", 3, "--batch-size", batch_size
  )
  assert code == 0
  lines = [json.loads(line) for line in output.splitlines()]
  files = [directory / "images" / name for name in ("a.JPEG", "b.png", "inner/c.gif")]
  assert [line["image"] for line in lines] == list(map(str, files))
  for line, file in zip(lines, files, strict=True):
    pixels = eval_transform(decode_image(file.read_bytes()), CONFIG["image_size"])
    expected = np.asarray(jax.nn.softmax(model(normalize(jnp.asarray(pixels[None])))))[0]
    best = np.argsort(-expected)[:3].tolist()
    assert [p["index"] for p in line["predictions"]] == best
    assert [p["class"] for p in line["predictions"]] == [NAMES[i] for i in best]
    found = [p["probability"] for p in line["predictions"]]
    np.testing.assert_allclose(found, expected[best], rtol=1e-4)


def test_the_table_shows_five_classes_by_index_or_by_the_names_of_a_file(directory, predict):
  image = directory / "images/b.png"
  code, output, _ = predict(directory / "unnamed", image)
  assert code == 0
  assert re.fullmatch(rf"{re.escape(str(image))}\n( +\d+\.\d\d%  [0-6]\n){{5}}", output)
  names = directory / "names.txt"
  names.write_text("\n".join(NAMES))
  _, named, _ = predict(directory / "unnamed", image, "--class-names", names)
  indices, words = (re.findall(r"%  (\w+)", text) for text in (output, named))
  assert [NAMES[int(index)] for index in indices] == words


def test_mistakes_are_told_in_one_line(directory, predict):
  broken, empty, names = (directory / name for name in ("broken.png", "empty", "short.txt"))
  broken.write_bytes(b"\x89PNG")
  empty.mkdir()
  names.write_text("ant\n")
  for arguments, match in [
    ([broken], "cannot read .*broken.png"),
    ([empty], "no images in .*empty"),
    (["nowhere"], "no images in nowhere"),
    ([directory / "images", "--class-names", names], "has 1 lines, expected one for each of 7"),
    ([directory / "images", "--class-names", "nowhere"], "expected one class name per line"),
    ([directory / "images", "--top", "0"], "must be positive"),
  ]:
    code, output, error = predict(directory / "named", *arguments)
    assert (code, output) == (2, "")
    assert re.fullmatch(rf"error: [^\n]*{match}[^\n]*\n", error), error
