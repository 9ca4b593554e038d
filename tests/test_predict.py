"""tools/predict.py: the same classes as the model gives, as a table and as JSON."""

import csv
import functools
import io
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled, random_model
from PIL import Image

import gfnet_jax
from gfnet_jax.checkpoints.model import save_model
from gfnet_jax.commands.predict import _names
from gfnet_jax.data.decode import decode_image
from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.data.transforms import eval_transform
from gfnet_jax.inference.find_images import find_images
from gfnet_jax.inference.prediction_files import csv_file, json_file
from gfnet_jax.inference.saved_model import Prediction

CONFIG = dict(
  name="gfnet-ti", image_size=(48, 40), num_classes=7, patch_size=8, embed_dim=8, depth=1
)
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


@pytest.fixture(scope="module")
def model():
  return random_model(lambda: gfnet_jax.create_model(**CONFIG), 0.1)


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


@pytest.fixture(scope="module")
def load_once():
  return functools.cache(gfnet_jax.load_model)


@pytest.fixture
def predict(in_process, load_once, monkeypatch):
  """predict(*arguments) -> (exit code, standard output, standard error).

  Only the first command that names a model loads it, and compiles it for a size of batches.
  """
  monkeypatch.setattr(gfnet_jax, "load_model", load_once, raising=False)
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
    expected = np.asarray(jax.nn.softmax(compiled(model)(normalize(jnp.asarray(pixels[None])))))[0]
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
  # Before the model, which takes longer.
  _, _, error = predict(directory / "nowhere", directory / "images", "--class-names", "nothing")
  assert error.startswith("error: cannot read nothing")


@pytest.fixture
def folder(directory, tmp_path):
  """Three good images among what is none."""
  for name in ("1.png", "3.png", "inner/5.png"):
    path = tmp_path / "photos" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((directory / "images/b.png").read_bytes())
  return tmp_path / "photos"


def bad_files():
  png = io.BytesIO()
  Image.effect_noise((60, 70), 99).save(png, "PNG")
  eps = io.BytesIO()
  Image.new("RGB", (60, 70)).save(eps, "EPS")
  return {
    "empty.jpg": b"",
    "truncated.png": png.getvalue()[:-2000],
    "page.jpg": b"<html>404</html>",
    "really eps.jpeg": eps.getvalue(),
    "new\nline.gif": b"GIF89a",
  }


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("name", bad_files())
def test_one_bad_file_does_not_end_the_rest(directory, predict, folder, name, batch_size):
  (folder / name).write_bytes(bad_files()[name])
  code, output, error = predict(directory / "named", folder, "--json", "--batch-size", batch_size)
  assert code == 2
  found = [json.loads(line)["image"] for line in output.splitlines()]
  assert found == [str(folder / good) for good in ("1.png", "3.png", "inner/5.png")]
  warning, summary = error.splitlines()
  visible = (str(folder) + "/" + name).replace("\n", "\\n")
  assert warning.startswith(f"warning: cannot read {visible}: not a readable image: ")
  assert summary.startswith("error: 1 of 4 images cannot be read (see the warnings above); ")


def test_a_folder_of_bad_files_names_them_all(directory, predict, tmp_path):
  for name, data in bad_files().items():
    (tmp_path / name).write_bytes(data)
  code, output, error = predict(directory / "named", tmp_path)
  assert (code, output) == (2, "")
  assert len(error.splitlines()) == 6
  assert error.endswith(
    "error: 5 of 5 images cannot be read (see the warnings above); repair or remove them\n"
  )


def test_a_file_that_may_not_be_read_is_one_of_them(directory, predict, folder, monkeypatch):
  def opened(path, *args, original=Path.open, **options):
    if path.name == "1.png":
      raise PermissionError(13, "Permission denied", str(path))
    return original(path, *args, **options)

  monkeypatch.setattr(Path, "open", opened)
  code, output, error = predict(directory / "named", folder, "--json")
  assert (code, output.count("\n")) == (2, 2)
  assert f"warning: cannot read {folder}/1.png: Permission denied\n" in error


def test_what_is_no_image_of_a_folder(directory, predict, folder):
  """Hidden files, formats that are not read, folders and pipes with names of images."""
  good = (folder / "1.png").read_bytes()
  for name in (
    "._1.png",
    ".cache/2.png",
    "@eaDir/3.png",
    "document.pdf",
    "drawing.eps",
    "icon.psd",
    "notes.txt",
  ):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(good)
  (folder / "album.png").mkdir()
  os.mkfifo(folder / "pipe.png")
  code, output, error = predict(directory / "named", folder, "--json")
  assert (code, output.count("\n"), error) == (0, 3, "")
  code, output, _ = predict(directory / "named", folder / "._1.png", "--json")
  assert (code, output.count("\n")) == (0, 1), "a hidden file that is named is meant"


def test_a_clipped_image_is_named_once(directory, predict, tmp_path, caplog):
  for name in ("a.png", "b.png", "c.tif"):
    Image.fromarray(np.full((60, 70), 1000, np.uint16)).save(tmp_path / name)
  assert predict(directory / "named", tmp_path)[0] == 0
  [record] = caplog.records
  assert f"{tmp_path}/a.png is a grey image of more than 8 bits" in record.getMessage()


def test_images_of_another_size_are_named(predict, tmp_path):
  """By a model of small images, which are not resized."""
  config = CONFIG | dict(image_size=(16, 16))
  model = random_model(lambda: gfnet_jax.create_model(**config), 0.1)
  save_model(tmp_path / "small", model, config, NAMES)
  for name, size in (("a.png", (16, 16)), ("b.png", (15, 16)), ("c.png", (300, 2))):
    (tmp_path / "images").mkdir(exist_ok=True)
    Image.new("RGB", size).save(tmp_path / "images" / name)
  code, output, error = predict(tmp_path / "small", tmp_path / "images", "--json")
  assert (code, output.count("\n")) == (2, 1)
  assert f"warning: {tmp_path}/images/b.png: got an image of 16x15 (height x width)" in error
  assert "error: 2 of 3 images cannot be read" in error


def test_probabilities_that_are_not_finite_are_json(predict, tmp_path):
  model = random_model(lambda: gfnet_jax.create_model(**CONFIG), 0.1)
  model.head.bias[...] = jnp.full(7, jnp.nan)
  save_model(tmp_path / "broken", model, CONFIG, NAMES)
  Image.new("RGB", (60, 70)).save(tmp_path / "a.png")
  code, output, _ = predict(tmp_path / "broken", tmp_path / "a.png", "--json")
  assert code == 0

  def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")

  [line] = output.splitlines()
  predictions = json.loads(line, parse_constant=refuse)["predictions"]
  assert [one["probability"] for one in predictions] == 5 * [None]


# --- Many images, and files of predictions --------------------------------------------------


def test_names_from_standard_input_patterns_and_folders(directory, predict, monkeypatch, tmp_path):
  files = [directory / "images" / name for name in ("a.JPEG", "b.png", "inner/c.gif")]
  names = b"\n".join([os.fsencode(files[2]), b"", b"nowhere.png"])
  monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(names)))
  patterns = (directory / "images/**/*", directory / "images/*.jp*", directory / "images/*.P?G")
  code, output, error = predict(directory / "named", "--json", "--", "-", *patterns)
  assert code == 2
  found = [json.loads(line)["image"] for line in output.splitlines()]
  assert found == list(map(str, [files[2], *files]))
  missing, nothing, wrong_case, summary = error.splitlines()
  assert missing.startswith("warning: no images in nowhere.png (No such file or directory), ")
  assert nothing.startswith(f"warning: no images in {patterns[1]}, expected ")
  assert wrong_case.startswith(f"warning: no images in {patterns[2]}, expected ")
  assert summary.startswith("error: 3 of 7 images cannot be read")


def test_names_that_end_in_zero_bytes_may_hold_anything(folder, monkeypatch):
  content = os.fsencode(f"{folder}/new\nline.png\0{folder}/1.png\0")
  monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
  assert list(_names(["a.png", "-"])) == ["a.png", f"{folder}/new\nline.png", f"{folder}/1.png"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\0"])
def test_no_names_on_standard_input_are_a_mistake(predict, monkeypatch, tmp_path, content):
  monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
  code, output, error = predict("gfnet-xs", "-", "--csv", tmp_path / "out.csv")
  assert (code, output) == (2, "")
  assert re.fullmatch(r"error: no images on standard input, expected [^\n]*\n", error)


@pytest.mark.parametrize(
  ("name", "shown"),
  [
    ("", "no images in '' (an empty name), expected an image file"),
    ("a\0b", r"no images in a\x00b (a zero byte), expected an image file"),
    ("gs://b/*.jpg", "gs://b/*.jpg is in a store, expected images on a disk"),
  ],
)
def test_names_that_no_file_has_are_refused(name, shown):
  [error] = find_images([name])
  assert str(error).startswith(shown)


def test_a_name_of_its_own_may_look_like_a_pattern(directory, predict, tmp_path):
  path = tmp_path / "[a]*.png"
  path.write_bytes((directory / "images/b.png").read_bytes())
  code, output, _ = predict(directory / "named", path, "--json")
  assert (code, json.loads(output)["image"]) == (0, str(path))


def test_files_of_predictions_hold_all_classes(directory, model, predict, folder, tmp_path):
  (folder / "2.png").write_bytes(b"\x89PNG")
  (folder / "2,\n\udcff.png").write_bytes((folder / "1.png").read_bytes())
  table, lines, whole = (tmp_path / f"new/out.{end}" for end in ("csv", "jsonl", "json"))
  code, output, error = predict(
    *(directory / "named", folder, "gone.png", "--top", 2, "--csv", table, "--json", lines)
  )
  assert code == 2
  assert output == f"Wrote {table}: 4 images\nWrote {lines}: 4 images\n"
  assert error.splitlines()[-1].startswith("error: 2 of 6 images cannot be read")
  assert predict(directory / "named", folder, "--top", 2, "--json", whole)[0] == 2
  records = json.loads(whole.read_text())
  assert records == [json.loads(line) for line in lines.read_text().splitlines()]
  names = ("1.png", "2,\n\udcff.png", "3.png", "inner/5.png")
  assert [record["image"] for record in records] == [str(folder / name) for name in names]
  pixels = eval_transform(decode_image((folder / "1.png").read_bytes()), CONFIG["image_size"])
  expected = jax.nn.softmax(compiled(model)(normalize(jnp.asarray(pixels[None]))))[0]
  with table.open(newline="", errors="surrogateescape") as file:
    header, *rows = csv.reader(file)
  assert header == ["image", "index", "class", "probability", *(f"p:{name}" for name in NAMES)]
  for record, row in zip(records, rows, strict=True):
    np.testing.assert_allclose(record["probabilities"], expected, rtol=1e-4)
    best = int(np.argmax(record["probabilities"]))
    assert record["predictions"][0]["index"] == best
    assert len(record["predictions"]) == 2
    assert row[:3] == [record["image"], str(best), NAMES[best]]
    assert list(map(float, row[3:])) == [record["probabilities"][best], *record["probabilities"]]
  assert not list(tmp_path.rglob("*.tmp"))


def test_predictions_of_no_image_are_an_empty_list(directory, predict, tmp_path):
  for name in ("a.png", "b.png"):
    (tmp_path / name).write_bytes(b"\x89PNG")
  assert predict(directory / "named", tmp_path, "--json", tmp_path / "out.json")[0] == 2
  assert json.loads((tmp_path / "out.json").read_text()) == []


def test_lines_without_a_result_are_an_empty_file(tmp_path):
  best = [Prediction(0, "ant", 1.0)]
  for name, count in (("none.jsonl", 0), ("one.JSONL", 1), ("two.jsonl", 2)):
    with json_file(tmp_path / name, 1) as write:
      for _ in range(count):
        write(Path("a.png"), best)
    lines = (tmp_path / name).read_text().split("\n")
    assert lines.pop() == ""
    assert [json.loads(line)["image"] for line in lines] == ["a.png"] * count


def test_classes_of_any_name_are_columns_and_none_is_a_formula(tmp_path):
  names = ["index", "class", "=1+1", "carriage\rreturn", "'quoted'", '"']
  saved = gfnet_jax.SavedModel(None, {"num_classes": len(names)}, names)
  paths = [Path(path) for path in ("@cmd.png", "-x.png", "a\rb.png", "+1.png", "\t.png", "a=b.png")]
  best = [Prediction(i, name, 1 / 8) for i, name in enumerate(names)]
  with csv_file(tmp_path / "out.csv", saved) as write:
    for i, path in enumerate(paths):
      write(path, best[i:] + best[:i])
  text = (tmp_path / "out.csv").read_bytes().decode()
  header, *rows = csv.reader(io.StringIO(text, newline=""))
  assert header == ["image", "index", "class", "probability", *(f"p:{name}" for name in names)]
  defused = ["'@cmd.png", "'-x.png", "a\rb.png", "'+1.png", "'\t.png", "a=b.png"]
  assert [row[0] for row in rows] == defused
  assert [row[2] for row in rows] == [*names[:2], "'=1+1", *names[3:]]
  assert '\n"\'@cmd.png",0,"index",0.125,' in text


def test_wnids_are_columns_of_the_table(predict, folder, tmp_path):
  config = CONFIG | dict(num_classes=2)
  names = ["n02012849", "n03126707"]
  save_model(tmp_path / "cranes", gfnet_jax.create_model(**config), config, names)
  assert predict(tmp_path / "cranes", folder / "1.png", "--csv", tmp_path / "out.csv")[0] == 0
  with (tmp_path / "out.csv").open() as file:
    header, row = csv.reader(file)
  assert header == [
    "image",
    "index",
    "class",
    "wnid",
    "probability",
    *(f"p:{name}" for name in names),
  ]
  index = int(row[1])
  assert row[2:4] == [("crane (bird)", "crane (machine)")[index], names[index]]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--json", "photo.jpg"], "--json photo.jpg: expected a file whose name ends in .json or .jso"),
    (["--csv", "photo.jpg"], "--csv photo.jpg: expected a file whose name ends in .csv; name the"),
    (["--csv", "README.md/out.csv"], "cannot write to README.md|README.md is a file"),
    (["--class-names", "imagenet"], "imagenet has 1000 lines, expected one for each of 7"),
  ],
)
def test_files_that_cannot_be_written_are_refused_before_the_work(
  directory, predict, arguments, message
):
  code, output, error = predict(directory / "named", directory / "images", *arguments)
  assert (code, output) == (2, "")
  assert re.fullmatch(rf"error: [^\n]*({message})[^\n]*\n", error), error


def test_what_is_broken_off_leaves_the_file_as_it_was(directory, predict, folder, monkeypatch):
  output = folder / "out.csv"
  output.write_text("before")

  def broken(*arguments, **options):
    yield [gfnet_jax.inference.saved_model.Prediction(i, NAMES[i], 1 / 7) for i in range(7)]
    raise KeyboardInterrupt

  monkeypatch.setattr(gfnet_jax.SavedModel, "predict_each", broken)
  assert predict(directory / "named", folder, "--csv", output)[0] == 130
  assert output.read_text() == "before"
  assert not list(folder.glob("*.tmp"))
