"""FGSM and PGD against answers by hand, against PyTorch, and through eval.py."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import collectives
from parity import reference, torch

import gfnet_jax
from gfnet_jax.data.imagenet import MEAN, STD
from gfnet_jax.data.on_device.normalize import normalize
from gfnet_jax.errors import UserError
from gfnet_jax.inference.attacked_sheet import draw_attacked
from gfnet_jax.inference.attacks import ATTACKS, ascend, attack_images, draw_starts, make_attack
from gfnet_jax.inference.classification import make_eval_step
from gfnet_jax.inference.evaluate import evaluate
from gfnet_jax.inference.robustness import measure_robustness
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.models.functional import merge, split
from gfnet_jax.sharding import make_mesh, replicate
from gfnet_jax.weights.state_dict import load_torch_state_dict

MODEL = dict(image_size=8, patch_size=2, embed_dim=16, depth=1, num_classes=10)


def test_the_usual_budgets():
  fgsm, pgd = ATTACKS["fgsm"], ATTACKS["pgd"]
  assert (fgsm.eps, fgsm.step, fgsm.steps, fgsm.random_start) == (1, 1, 1, False)
  assert (pgd.eps, pgd.step, pgd.steps, pgd.random_start) == (1, 0.5, 5, True)
  assert (make_attack("pgd", eps=8).step, make_attack("fgsm", eps=8).step) == (4, 8)
  assert str(make_attack("fgsm")) == "fgsm (eps 1/255, 1 step of 1/255)"


# A linear network of two classes on images of 1 x 4 pixels. Of class 0, the gradient points along
# w1 - w0 whatever the logits, so its sign is known: per pixel +, -, 0 and +.
DIFFERENCE = np.array([3.0, -0.5, 0.0, 2.0])
PIXELS = np.array([100, 0, 50, 255], np.uint8)  # of which the second and last are at the edge


def linear(images):
  weights = jnp.asarray(DIFFERENCE, images.dtype)[None, None, :, None]
  second = (images * weights).sum((1, 2, 3))
  return jnp.stack([jnp.zeros_like(second), second], axis=-1)


def values(images):
  """Normalised images as colour values of 0 to 255, of the first channel."""
  mean, std = (np.array(x).reshape(1, 1, 1, 3) for x in (MEAN, STD))
  found = (np.asarray(images, np.float64) * std + mean) * 255
  assert np.ptp(found, axis=-1).max() < 1e-4  # all channels alike
  return found[0, 0, :, 0]


@pytest.mark.parametrize(
  ("attack", "start", "expected"),
  [
    (make_attack("fgsm"), None, [101, 0, 50, 255]),
    (make_attack("fgsm", eps=8), None, [108, 0, 50, 255]),
    (make_attack("fgsm", eps=8, step=3), None, [103, 0, 50, 255]),
    # Five steps of 0.5 reach the border of the budget from anywhere; a zero gradient stays.
    (make_attack("pgd"), -0.5, [101, 0, 49.5, 255]),
    # One step of 0.5 from a start of 0.25: the second is at 0.25 and goes back to the edge.
    (make_attack("pgd", steps=1), 0.25, [100.75, 0, 50.25, 255]),
    (make_attack("pgd", eps=4, steps=1), 0.75, [104, 1, 53, 255]),
    (make_attack("pgd", eps=0), 0.9, [100, 0, 50, 255]),
  ],
)
def test_a_linear_network_by_hand(attack, start, expected):
  images = normalize(jnp.asarray(np.tile(PIXELS[None, None, :, None], (1, 1, 1, 3))))
  start = None if start is None else jnp.full(images.shape, start, images.dtype)
  found = ascend(attack, linear, images, jnp.zeros(1, jnp.int32), start)
  np.testing.assert_allclose(values(found), expected, atol=2e-4)


def test_the_other_class_is_attacked_the_other_way():
  images = normalize(jnp.asarray(np.tile(PIXELS[None, None, :, None], (1, 1, 1, 3))))
  found = ascend(ATTACKS["fgsm"], linear, images, jnp.ones(1, jnp.int32), None)
  np.testing.assert_allclose(values(found), [99, 1, 50, 254], atol=2e-4)
  padding = ascend(ATTACKS["fgsm"], linear, images, -jnp.ones(1, jnp.int32), None)
  np.testing.assert_array_equal(padding, images)


def attacked_by_pytorch(module, pixels, labels, *, eps, step, steps, start):
  """In colour values of 0 to 1, one image after the other; (images, 3, height, width)."""
  mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in (MEAN, STD))
  results = []
  for i, label in enumerate(labels.tolist()):
    clean = torch.from_numpy(pixels[i]).permute(2, 0, 1).double() / 255
    changed = clean + eps / 255 * torch.from_numpy(start[i]).permute(2, 0, 1)
    changed = changed.clamp(0, 1)
    for _ in range(steps):
      changed = changed.detach().requires_grad_()
      logits = module(((changed - mean) / std)[None])
      torch.nn.functional.cross_entropy(logits, torch.tensor([label])).backward()
      with torch.no_grad():
        moved = changed + step / 255 * changed.grad.sign()
        moved = torch.min(torch.max(moved, clean - eps / 255), clean + eps / 255)
        changed = moved.clamp(0, 1)
    results.append(((changed - mean) / std).detach().numpy().transpose(1, 2, 0))
  return np.stack(results)


@pytest.mark.parity
@pytest.mark.parametrize("name", list(ATTACKS))
def test_a_network_is_attacked_as_by_pytorch(name):
  with jax.enable_x64(True):
    module = reference.GFNet(image_size=8, patch=2, dim=16, depth=1, num_classes=10)
    weights = reference.golden_weights(reference.shapes(module))
    weights = {key: value.astype(np.float64) for key, value in weights.items()}
    module = reference.load(module, weights)
    model = nnx.eval_shape(lambda: gfnet_jax.GFNet(**MODEL, dtype=jnp.float64, rngs=nnx.Rngs(0)))
    structure, params = split(load_torch_state_dict(model, weights))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    pixels[0, :4], pixels[1, :4] = 0, 255
    labels, indices = np.array([3, 1, 4, 1], np.int32), np.array([7, 0, 1, 2], np.int32)
    attack = make_attack(name, eps=2)
    start = np.zeros(pixels.shape)
    if attack.random_start:
      start = np.array(draw_starts(0, indices, (8, 8, 3), jnp.float64))
    expected = attacked_by_pytorch(
      module, pixels, labels, eps=2, step=attack.step, steps=attack.steps, start=start
    )

    @jax.jit
    def attacked(params, pixels):
      model = merge(structure, params)
      return attack_images(attack, model, normalize(pixels, jnp.float64), labels, indices)

    found = np.asarray(attacked(params, pixels))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert np.abs(found - np.asarray(normalize(pixels, jnp.float64))).max() > 0.01


def test_the_start_of_an_image_does_not_depend_on_its_batch():
  whole = draw_starts(5, jnp.arange(6, dtype=jnp.int32), (4, 4, 3), jnp.float32)
  part = draw_starts(5, jnp.array([4, 2], jnp.int32), (4, 4, 3), jnp.float32)
  np.testing.assert_array_equal(part, whole[jnp.array([4, 2])])
  assert not np.array_equal(whole[0], whole[1])
  assert -1 <= float(whole.min()) < -0.9
  assert 0.9 < float(whole.max()) < 1
  other = draw_starts(6, jnp.arange(6, dtype=jnp.int32), (4, 4, 3), jnp.float32)
  assert not np.array_equal(whole, other)


@pytest.fixture(scope="module")
def saved():
  model = gfnet_jax.create_model("gfnet-ti", **MODEL, rngs=nnx.Rngs(3))
  data = dict(source="tfds", name="digits", eval_split="test[:100]")
  return SavedModel(model, MODEL | {"name": "gfnet-ti"}, run_config={"data": data})


def test_whole_evaluations(saved, tmp_path):
  """eps 0 is the clean accuracy; an attack raises the loss; batches and reports change nothing."""
  clean = evaluate(saved, batch_size=64)
  nothing = evaluate(saved, attack=make_attack("pgd", eps=0), batch_size=64)
  for name in ("top1", "top5", "loss", "images"):
    assert nothing[name] == clean[name]
  pgd = make_attack("pgd", eps=16, steps=2)
  attacked = evaluate(saved, attack=pgd, batch_size=64)
  assert attacked["loss"] > clean["loss"] + 0.01
  assert attacked["attack"] == str(pgd)
  again = evaluate(saved, attack=pgd, batch_size=24, report=tmp_path)
  assert again["loss"] == pytest.approx(attacked["loss"], abs=1e-6)
  assert again["top1"] == attacked["top1"]
  report = json.loads((tmp_path / "report.json").read_text())
  assert 100 * report["correct"] / report["images"] == pytest.approx(attacked["top1"])


def test_devices_exchange_only_the_sums_of_the_metrics(saved):
  """Each attacks its own images; neither these nor their random starts travel."""
  structure, params = split(saved.model)
  mesh = make_mesh()
  batch = {"image": np.zeros((16, 8, 8, 3), np.uint8), "label": np.zeros(16, np.int32)}
  with jax.set_mesh(mesh):
    step = make_eval_step(structure, mesh, None, ATTACKS["pgd"])
    hlo = step.lower(replicate(params, mesh), batch).compile().as_text()
  found = collectives(hlo)
  assert found.keys() == {"all-reduce"}
  assert {shape for shapes in found.values() for shape in shapes} <= {"f32[]", "s32[]"}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(eps=-1.0), "the attack's eps is -1, expected 0 to 255"),
    (dict(eps=math.nan), "the attack's eps is nan, expected 0 to 255"),
    (dict(step=256.0), "the attack's step is 256, expected 0 to 255"),
    (dict(steps=0), "the attack has 0 steps, expected 1 to 10000"),
    (dict(seed=-1), "the attack's seed is -1, expected 0 to"),
  ],
)
def test_budgets_that_make_no_attack(changes, message):
  with pytest.raises(UserError, match=message):
    make_attack("pgd", **changes)


def test_unknown_attacks_are_refused():
  with pytest.raises(UserError, match="unknown attack 'fgms', expected one of fgsm, pgd; did you"):
    make_attack("fgms")


def test_the_sheet_shows_images_above_what_becomes_of_them(saved):
  sheet = np.asarray(draw_attacked(saved, make_attack("fgsm", eps=0)))
  height = sheet.shape[0] // 2
  thumbnails = slice(8, 188)  # the captions below differ
  np.testing.assert_array_equal(sheet[thumbnails], sheet[height - 4 :][thumbnails])
  changed = np.asarray(draw_attacked(saved, make_attack("fgsm", eps=60)))
  np.testing.assert_array_equal(changed[thumbnails], sheet[thumbnails])
  assert not np.array_equal(changed[height - 4 :][thumbnails], sheet[thumbnails])


@pytest.mark.parametrize(
  ("model", "message"),
  [
    (dict(decoder="semantic-fpn", num_classes=5), "the model segments images, expected one that"),
    (dict(num_classes=0), r"the model has no head \(num_classes is 0\), expected one with classes"),
  ],
)
def test_what_gives_no_class_to_an_image_is_not_attacked(saved, model, message):
  other = dataclasses.replace(saved, config=saved.config | model)
  attack = ATTACKS["fgsm"]
  for ask in (
    lambda: evaluate(other, attack=attack),
    lambda: draw_attacked(other, attack),
    lambda: next(measure_robustness(other, attacks=[attack])),
  ):
    with pytest.raises(UserError, match=message):
      ask()


def test_the_flags_of_the_tool(in_process, tmp_path):
  command = ("tools/robustness.py", "x", "--sheet", tmp_path)
  code, _, errors = in_process(*command)
  assert (code, errors.count("\n")) == (2, 1)
  assert f"{tmp_path} is a directory or a device, expected a file" in errors
  code, _, errors = in_process(*command, "--output", tmp_path / "results.json")
  assert (code, errors.count("\n")) == (2, 1)
  assert "--sheet only draws, expected no --output beside it" in errors


def test_flags(in_process):
  code, _, errors = in_process("eval.py", "--checkpoint", "x", "--attack", "pgd", "--attack-eps=-1")
  assert (code, errors.count("\n")) == (2, 1)
  assert "eps is -1, expected 0 to 255" in errors
  code, _, errors = in_process("eval.py", "--checkpoint", "x", "--attack-steps", "5")
  assert (code, errors.count("\n")) == (2, 1)
  assert "--attack-steps without --attack" in errors
