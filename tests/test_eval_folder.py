"""eval.py on a folder of images against a plain PyTorch loop with the same weights."""

import json

import numpy as np
import pytest
from PIL import Image

from gfnet_jax.weights.files import write_state_dict

torch = pytest.importorskip("torch")
reference = pytest.importorskip("gfnet_jax.weights.reference")

NAME, SIZE, CLASSES, IMAGES = "gfnet-ti", 96, 20, 150


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
  shapes = reference.shapes(reference.create(NAME, SIZE, CLASSES))
  path = tmp_path_factory.mktemp("weights") / "weights.pth"
  write_state_dict(path, reference.golden_weights(shapes))
  return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """JPEGs of many sizes, some grey or CMYK, some with an EXIF orientation."""
  rng = np.random.default_rng(0)
  directory = tmp_path_factory.mktemp("images")
  for i in range(IMAGES):
    small = rng.integers(0, 256, (5, 4, 3), np.uint8)
    size = tuple(rng.integers(90, 400, 2).tolist())
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    image = image.convert(("RGB", "RGB", "RGB", "L", "CMYK")[i % 5])
    exif = Image.Exif()
    exif[0x0112] = 1 + i % 8  # orientation
    path = directory / "val" / f"n{i % CLASSES:08d}" / f"{i:05d}.JPEG"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", exif=exif)
  return directory


@pytest.fixture(scope="module")
def expected(folder, weights_file):
  """The official evaluation, written out: one image after the other."""
  model = reference.create(NAME, SIZE, CLASSES)
  model.load_state_dict(torch.load(weights_file)["model"], strict=True, assign=True)
  mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
  classes = sorted(path.name for path in (folder / "val").iterdir())
  images, labels = [], []
  for label, name in enumerate(classes):
    for path in sorted((folder / "val" / name).iterdir()):
      image = Image.open(path).convert("RGB")
      shorter = int(256 / 224 * SIZE)
      width, height = image.size
      if width <= height:
        width, height = shorter, int(shorter * height / width)
      else:
        width, height = int(shorter * width / height), shorter
      image = image.resize((width, height), Image.Resampling.BICUBIC)
      left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
      pixels = np.array(image.crop((left, top, left + SIZE, top + SIZE)))
      images.append((torch.from_numpy(pixels).float() / 255 - mean) / std)
      labels.append(label)
  images, labels = torch.stack(images).permute(0, 3, 1, 2), torch.tensor(labels)
  with torch.no_grad():
    logits = torch.cat([model.eval()(batch) for batch in images.split(100)])
  ranked = logits.topk(5).indices == labels[:, None]
  return {
    "top1": 100 * ranked[:, 0].double().mean().item(),
    "top5": 100 * ranked.any(1).double().mean().item(),
    "loss": torch.nn.functional.cross_entropy(logits.double(), labels).item(),
    "images": len(labels),
  }


@pytest.mark.parity
def test_counts_and_loss_are_those_of_pytorch(script, folder, weights_file, expected, tmp_path):
  result = script(
    *("eval.py", "--torch-checkpoint", weights_file, "--data", folder),
    *("--output", tmp_path / "result.json", "--batch-size", 64, "--precision", "highest"),
  )
  assert result.returncode == 0, result.stderr
  found = json.loads((tmp_path / "result.json").read_text())
  assert found["images"] == expected["images"] == IMAGES
  assert 0 < expected["top1"] < expected["top5"] < 100
  assert found["top1"] == pytest.approx(expected["top1"], abs=1e-9)
  assert found["top5"] == pytest.approx(expected["top5"], abs=1e-9)
  assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_a_converted_checkpoint_gives_the_same(script, folder, weights_file, expected, tmp_path):
  directory = tmp_path / "run"
  assert script("convert_torch_weights.py", weights_file, directory).returncode == 0
  # The directory of the classes itself, in another batch size and on eight devices.
  result = script(
    *("eval.py", "--checkpoint", directory, "--data", folder / "val", "--batch-size", 100),
    *("--output", tmp_path / "result.json"),
    devices=8,
  )
  assert result.returncode == 0, result.stderr
  found = json.loads((tmp_path / "result.json").read_text())
  assert (found["images"], found["top1"]) == (IMAGES, pytest.approx(expected["top1"], abs=1e-9))
  assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_a_checkpoint_without_a_data_set_asks_for_one(in_process, weights_file):
  code, _, errors = in_process("eval.py", "--torch-checkpoint", weights_file)
  assert code == 2
  assert "give one with --data" in errors
