"""Pictures of the filters in TensorBoard, which change nothing else."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import own_mixer
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from configs.digits import get_config
from gfnet_jax.errors import UserError
from gfnet_jax.models.functional import split
from gfnet_jax.models.variants import create_model
from gfnet_jax.training.filter_images import write_filter_images
from gfnet_jax.training.run import check
from gfnet_jax.training.writer import MetricWriter
from gfnet_jax.views.filters import filter_layers
from gfnet_jax.views.mosaic import magnitudes, to_png


def images(directory: Path) -> dict[tuple[int, str], np.ndarray]:
  """The pictures of TensorBoard's files by (step, name)."""
  found = {}
  for path in (directory / "tensorboard").iterdir():
    content = path.read_bytes()
    while content:
      length = int.from_bytes(content[:8], "little")
      data, content = content[12 : 12 + length], content[16 + length :]
      event = Event.FromString(data)
      for value in event.summary.value:
        if value.HasField("image"):
          with Image.open(io.BytesIO(value.image.encoded_image_string)) as image:
            assert (value.image.width, value.image.height) == image.size
            found[event.step, value.tag] = np.asarray(image.convert("RGB"))
  return found


def test_a_picture_per_stage(tmp_path):
  options = dict(embed_dims=(2, 30), depths=(2, 1), image_size=(32, 48), num_classes=2, scan=True)
  model = create_model("gfnet-h-ti", **options)
  program = SimpleNamespace(
    make_model=lambda: create_model("gfnet-h-ti", **options), gather=lambda params: params
  )
  state = SimpleNamespace(params=split(model)[1])
  with MetricWriter(tmp_path, 0) as writer:
    write_filter_images(writer, SimpleNamespace(program=program), state, 7)
  found = images(tmp_path)
  assert list(found) == [(7, "filters/stage0"), (7, "filters/stage1")]
  layers = filter_layers(model)
  # Pictures of 8 x 12 and 4 x 6 tokens with a line between them, three pixels each.
  for picture, own, columns, shape in (
    (found[7, "filters/stage0"], layers[:2], 2, (3 * 17, 3 * 25, 3)),
    (found[7, "filters/stage1"], layers[2:], 24, (3 * 4, 3 * (24 * 7 - 1), 3)),
  ):
    assert picture.shape == shape
    png, _ = to_png(magnitudes(own, list(range(columns))))
    with Image.open(io.BytesIO(png)) as expected:
      np.testing.assert_array_equal(picture, expected)


def test_a_model_without_filters_is_refused_before_the_first_step(monkeypatch):
  own_mixer.register(monkeypatch)
  config = get_config()
  config.model.mixer = "gate"
  check(config)
  config.filters_every_steps = 10
  with pytest.raises(UserError, match="token mixer of this model is 'gate', which has no global"):
    check(config)


@pytest.mark.parametrize("mixer", ["global-filter", "global-local"])
def test_a_model_with_stacked_blocks_of_filters_is_accepted(mixer):
  config = get_config()
  config.model.mixer, config.model.scan, config.filters_every_steps = mixer, True, 10
  check(config)


@pytest.mark.slow
def test_pictures_change_no_bit_of_a_run(tmp_path, script):
  small = ("--config.num_epochs=2", "--config.optimizer.warmup_epochs=1", "--config.model.depth=2")
  small = (*small, "--config.data.batch_size=320", "--config.log_every_steps=1")
  for name, own in (("with", ["--config.filters_every_steps=4"]), ("without", [])):
    result = script("train.py", "--workdir", tmp_path / name, *small, *own)
    assert result.returncode == 0, result.stderr
  lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("with", "without")]
  assert lines[0] == lines[1]
  assert list(images(tmp_path / "with")) == [(4, "filters/stage0"), (8, "filters/stage0")]
  assert images(tmp_path / "without") == {}
