"""The network that gives every pixel a class, against an independent PyTorch version."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import random_model
from parity import random_array, reference, relative_l2, to_channels_first, torch

import gfnet_jax
from gfnet_jax.errors import UserError
from gfnet_jax.models import semantic_fpn
from gfnet_jax.models.batch_norm import is_statistic
from gfnet_jax.models.fit import carry_params, resize
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.variants import coarsest_stride
from gfnet_jax.training.objective import trained_params
from gfnet_jax.weights.state_dict import load_torch_state_dict

F, nn = torch.nn.functional, torch.nn
DIMS, DEPTHS, CHANNELS, CLASSES = (4, 6, 8, 10), (1, 1, 2, 1), (12, 8), 5
TINY = dict(embed_dims=DIMS, depths=DEPTHS, layer_scale_init=1e-3, drop_path_rate=0.0)
DECODED = dict(decoder="semantic-fpn", decoder_dims=CHANNELS, num_classes=CLASSES)


def created(**options):
  """The structure of a model and random parameters, without compiling its initialisers."""
  model = random_model(lambda: gfnet_jax.create_model("gfnet-h-ti", **TINY | options))
  return split(model)


class Decoder(nn.Module):
  """FPN's neck and head as mmsegmentation defines them, written from their definition."""

  def __init__(self, dims, channels, classes):
    super().__init__()
    pyramid, head = channels
    self.lateral = nn.ModuleList(nn.Conv2d(dim, pyramid, 1) for dim in dims)
    self.output = nn.ModuleList(nn.Conv2d(pyramid, pyramid, 3, padding=1) for _ in dims)
    self.scale = nn.ModuleList()
    for i in range(len(dims)):
      layers = []
      for j in range(max(1, i)):
        layers.append(nn.Conv2d(head if j else pyramid, head, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(head), nn.ReLU()]
        if i:
          layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
      self.scale.append(nn.Sequential(*layers))
    self.classifier = nn.Conv2d(head, classes, 1)

  def forward(self, stages, size):
    levels = [lateral(x) for lateral, x in zip(self.lateral, stages, strict=True)]
    for i in range(len(levels) - 1, 0, -1):
      levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=levels[i - 1].shape[2:])
    levels = [output(x) for output, x in zip(self.output, levels, strict=True)]
    total = sum(scale(x) for scale, x in zip(self.scale, levels, strict=True))
    return F.interpolate(self.classifier(total), size=size, mode="bilinear", align_corners=False)


class Witness:
  """The same network in PyTorch, with random weights, and ours with the same."""

  def __init__(self):
    trunk = reference.GFNetPyramid(64, dims=DIMS, depths=DEPTHS)
    self.trunk = reference.load(trunk, reference.golden_weights(reference.shapes(trunk)))
    self.decoder = Decoder(DIMS, CHANNELS, CLASSES)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
      for name, value in self.decoder.state_dict().items():
        if name.endswith("running_var"):
          value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point():
          value.normal_(0, 0.3, generator=generator)
    classifier = merge(*created(image_size=64))
    load_torch_state_dict(classifier, {k: v.numpy() for k, v in self.trunk.state_dict().items()})
    self.structure, fresh = created(image_size=64, **DECODED)
    model = merge(self.structure, fresh)
    self.params = carry_params(classifier, model, fresh) | self.ours(self.decoder.state_dict())
    assert self.params.keys() == fresh.keys()

  def ours(self, tensors):
    """The decoder's tensors, or their gradients, by our names and in our shapes."""
    found = {}

    def put(name, layer, prefix):
      for ending, kernel in (("kernel", "weight"), ("bias", "bias")):
        if f"{prefix}.{kernel}" in tensors:
          value = tensors[f"{prefix}.{kernel}"].detach().numpy()
          if ending == "kernel":
            value = value[..., 0, 0].T if layer == "dense" else value.transpose(2, 3, 1, 0)
          found[f"{name}.{ending}"] = np.array(value)

    for i in range(len(DIMS)):
      put(f"pyramid.laterals.{i}", "dense", f"lateral.{i}")
      put(f"pyramid.outputs.{i}", "convolution", f"output.{i}")
      for j in range(max(1, i)):
        place = f"scale.{i}.{j * (4 if i else 3)}"
        put(f"decoder.convolutions.{i}.{j}", "convolution", place)
        place = f"scale.{i}.{j * (4 if i else 3) + 1}"
        names = dict(weight="scale", bias="bias")
        names |= dict(running_mean="running_mean", running_var="running_variance")
        for theirs, name in names.items():
          if f"{place}.{theirs}" in tensors:
            value = np.array(tensors[f"{place}.{theirs}"].detach().numpy())
            found[f"decoder.norms.{i}.{j}.{name}"] = value
    put("decoder.classifier", "dense", "classifier")
    return found

  def logits(self, images):
    x, stages, side = to_channels_first(images), [], images.shape[1] // 4
    for i in range(len(DIMS)):
      x = self.trunk.forward_stage(i, x)
      grid = (side // 2**i, side // 2**i)
      stages.append(x.transpose(1, 2).reshape(len(images), -1, *grid))
    return self.decoder(stages, images.shape[1:3]).permute(0, 2, 3, 1)


@functools.cache
def witness():
  return Witness()


@pytest.mark.parametrize("train", [False, True])
def test_forward_and_gradient_equal_pytorchs(train, monkeypatch, measured):
  """In training as well: norms by the batch, whose running statistics move; without dropout."""
  monkeypatch.setattr(semantic_fpn, "DROPOUT", 0.0)
  other, images = witness(), random_array(2, 64, 64, 3)
  weights = random_array(2, 64, 64, CLASSES, seed=1)
  other.decoder.train(train)
  before = {name: tensor.clone() for name, tensor in other.decoder.state_dict().items()}
  for module in (other.decoder, other.trunk):
    module.zero_grad()
  expected = other.logits(images)
  (expected * torch.from_numpy(weights)).sum().backward()
  after = other.ours(other.decoder.state_dict())
  other.decoder.load_state_dict(before)

  def ours(params):
    model = merge(other.structure, params)
    logits = model(jnp.array(images), key=jax.random.key(0) if train else None)
    return (logits * weights).sum(), (logits, split(model)[1])

  compute = jax.jit(jax.grad(ours, has_aux=True))
  gradients, (logits, moved) = jax.device_get(compute(other.params))
  difference = relative_l2(logits, expected.detach().numpy())
  measured(f"Semantic FPN, logits, training {train}", difference, 1e-5)
  theirs = other.ours({name: p.grad for name, p in other.decoder.named_parameters()})
  assert theirs.keys() == {n for n in gradients if "trunk." not in n and not is_statistic(n)}
  scale = max(float(np.abs(value).max()) for value in theirs.values())
  for name, value in theirs.items():
    assert np.abs(gradients[name] - value).max() <= 1e-5 * scale, name
  stem = other.trunk.patch_embed[0].proj.weight.grad.permute(2, 3, 1, 0).reshape(-1, DIMS[0])
  difference = relative_l2(gradients["trunk.patch_embed.0.proj.kernel"], stem.numpy())
  measured(f"Semantic FPN, gradient of the stem, training {train}", difference, 1e-5)
  for name in filter(is_statistic, moved):
    np.testing.assert_allclose(moved[name], after[name], rtol=1e-5, atol=1e-6)
    assert train == bool(np.any(moved[name] != other.params[name]))
    assert not gradients[name].any() or not train


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_enlarging_equals_pytorchs_interpolation(factor):
  x = random_array(2, 3, 5, 4)
  found = semantic_fpn.enlarge(jnp.array(x), factor)
  options = dict(scale_factor=factor, mode="bilinear", align_corners=False)
  expected = F.interpolate(to_channels_first(x), **options).permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  ("name", "count"),
  [("gfnet-h-ti", 26_108_118), ("gfnet-h-s", 46_695_414), ("gfnet-h-b", 73_917_174)],
)
def test_parameter_counts_with_150_classes_at_512_pixels(name, count):
  options = dict(image_size=512, num_classes=150, decoder="semantic-fpn")
  model = nnx.eval_shape(lambda: gfnet_jax.create_model(name, **options))
  params = split(model)[1]
  assert sum(value.size for n, value in params.items() if not is_statistic(n)) == count


def test_images_of_another_size_are_answered_by_the_bilinear_rule():
  model = merge(witness().structure, witness().params)
  images = jnp.array(random_array(1, 64, 96, 3))
  structure, params = split(model)
  found = jax.jit(lambda p, x: merge(structure, p)(x))(params, images)
  model.trunk = resize(model.trunk, (64, 96), "bilinear")
  structure, params = split(model)
  expected = jax.jit(lambda p, x: merge(structure, p)(x))(params, images)
  assert found.shape == (1, 64, 96, CLASSES)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  assert model.dynamic_size == "bilinear"
  model.dynamic_size = None  # as of a network without a decoder
  with pytest.raises(UserError, match=r"got images of shape \(1, 96, 64, 3\)"):
    model(images.swapaxes(1, 2))


def test_a_decoder_keeps_its_weights_and_gets_a_new_classifier_for_other_classes():
  model = merge(witness().structure, witness().params)
  structure, fresh = created(**DECODED | dict(image_size=32, num_classes=3))
  params = carry_params(model, merge(structure, fresh), fresh)
  for name in ("pyramid.laterals.1.kernel", "decoder.norms.3.2.running_mean", "trunk.blocks.0.0."):
    name = next(n for n in params if n.startswith(name) and ".filter." not in n)
    np.testing.assert_array_equal(params[name], witness().params[name])
  smaller = split(resize(model.trunk, 32, "bilinear"))[1]
  for name in ("pos_embed", "blocks.0.0.filter.complex_weight"):
    np.testing.assert_array_equal(params[f"trunk.{name}"], smaller[name])
    assert not np.array_equal(smaller[name], split(resize(model.trunk, 32))[1][name])
  name = "decoder.classifier.kernel"
  np.testing.assert_array_equal(params[name], fresh[name])
  structure, fresh = created(image_size=64, num_classes=7)
  carried = carry_params(model, merge(structure, fresh), fresh)
  assert carried.keys() == fresh.keys()
  np.testing.assert_array_equal(carried["head.kernel"], fresh["head.kernel"])


def test_what_is_trained():
  names = {name: jnp.zeros(1) for name in witness().params}
  trained = trained_params(names, {"freeze_trunk": None})
  assert names.keys() - trained.keys() == set(filter(is_statistic, names))
  frozen = trained_params(names, {"freeze_trunk": True})
  assert frozen.keys() == {name for name in trained if not name.startswith("trunk.")}


def test_the_coarsest_stride():
  assert coarsest_stride({"name": "gfnet-h-b", "patch_size": None}) == 32
  assert coarsest_stride({"name": "gfnet-h-ti", "patch_size": 2, "depths": (1, 1, 1)}) == 8
  assert coarsest_stride({"name": "gfnet-xs"}) == 16


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(name="gfnet-xs"), "gfnet-xs has a single stage, expected one of gfnet-h-ti, gfnet-h-s,"),
    (dict(decoder="upernet"), "unknown decoder 'upernet', expected one of semantic-fpn"),
    (dict(decoder_dims=(8,)), r"decoder_dims is \(8,\), expected two: channels of the pyramid and"),
    (dict(decoder_dims=(8, 0)), r"decoder_dims is \(8, 0\), expected two"),
    (dict(decoder=None), "decoder_dims is set, but no decoder"),
    (dict(num_classes=0), "num_classes is 0, expected a positive integer"),
    (dict(image_size=80), "image_size 80x80 is not divisible by 32"),
  ],
)
def test_networks_that_there_are_not(options, message):
  options = dict(name="gfnet-h-ti", image_size=64) | TINY | DECODED | options
  options = {n: v for n, v in options.items() if options["name"] != "gfnet-xs" or n not in TINY}
  with pytest.raises(UserError, match=message):
    nnx.eval_shape(lambda: gfnet_jax.create_model(**options))


def test_the_official_format_has_no_decoder():
  model = merge(witness().structure, witness().params)
  with pytest.raises(UserError, match="the official format has no networks with a decoder"):
    gfnet_jax.to_torch_state_dict(model)
