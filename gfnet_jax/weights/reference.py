"""The official network in plain PyTorch: the live witness of the parity tests.

State-dict names, shapes and order are the official ones, so that official weights
load with `strict=True`. Only what the seven variants use is here. `golden_weights`
makes the deterministic weights that the files in tests/golden were computed with.
"""

import zlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class GlobalFilter(nn.Module):
  """The filter over (batch, side * side, dim), float32, orthonormal both ways."""

  def __init__(self, dim, side):
    super().__init__()
    self.side = side
    self.complex_weight = nn.Parameter(torch.randn(side, side // 2 + 1, dim, 2) * 0.02)

  def forward(self, x):
    """(batch, tokens, dim) to the same shape, float32."""
    batch, tokens, dim = x.shape
    # Officially to float32; with weights of float64, in double precision, that cast is left out.
    grid = x.view(batch, self.side, self.side, dim).to(self.complex_weight.dtype)
    spectrum = torch.fft.rfft2(grid, dim=(1, 2), norm="ortho")
    spectrum = spectrum * torch.view_as_complex(self.complex_weight)
    grid = torch.fft.irfft2(spectrum, s=(self.side, self.side), dim=(1, 2), norm="ortho")
    return grid.reshape(batch, tokens, dim)


class Mlp(nn.Module):
  """Two linear layers with an exact GELU between them, four times as wide inside."""

  def __init__(self, dim):
    super().__init__()
    self.fc1 = nn.Linear(dim, 4 * dim)
    self.fc2 = nn.Linear(4 * dim, dim)

  def forward(self, x):
    """(batch, tokens, dim) to the same shape."""
    return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
  """Norm, filter, norm, MLP and one residual connection, scaled by gamma where there is one."""

  def __init__(self, dim, side, gamma=None):
    super().__init__()
    if gamma is not None:
      self.gamma = nn.Parameter(torch.full((dim,), gamma))
    self.norm1 = nn.LayerNorm(dim, eps=1e-6)
    self.filter = GlobalFilter(dim, side)
    self.norm2 = nn.LayerNorm(dim, eps=1e-6)
    self.mlp = Mlp(dim)

  def forward(self, x):
    """(batch, tokens, dim) to the same shape."""
    branch = self.mlp(self.norm2(self.filter(self.norm1(x))))
    return x + (self.gamma * branch if hasattr(self, "gamma") else branch)


class PatchEmbed(nn.Module):
  """Patches to tokens: a convolution whose kernel is as large as its stride."""

  def __init__(self, patch, in_dim, dim):
    super().__init__()
    self.proj = nn.Conv2d(in_dim, dim, kernel_size=patch, stride=patch)

  def forward(self, images):
    """(batch, channels, height, width) to (batch, tokens, dim)."""
    return self.proj(images).flatten(2).transpose(1, 2)


class GFNet(nn.Module):
  """The isotropic network."""

  def __init__(self, image_size=224, patch=16, dim=384, depth=12, num_classes=1000):
    super().__init__()
    side = image_size // patch
    self.pos_embed = nn.Parameter(torch.zeros(1, side * side, dim))
    self.patch_embed = PatchEmbed(patch, 3, dim)
    self.blocks = nn.ModuleList(Block(dim, side) for _ in range(depth))
    self.norm = nn.LayerNorm(dim, eps=1e-6)
    self.head = nn.Linear(dim, num_classes)

  def forward_features(self, images):
    """Images (batch, 3, height, width) to features (batch, channels), after norm and mean."""
    x = self.patch_embed(images) + self.pos_embed
    for block in self.blocks:
      x = block(x)
    return self.norm(x).mean(1)

  def forward(self, images):
    """Images (batch, 3, height, width) to logits (batch, num_classes)."""
    return self.head(self.forward_features(images))


class GFNetPyramid(nn.Module):
  """The hierarchical network."""

  def __init__(self, image_size=224, patch=4, dims=(), depths=(), gamma=1e-3, num_classes=1000):
    super().__init__()
    side = image_size // patch
    sides = [side // 2**i for i in range(len(dims))]
    self.pos_embed = nn.Parameter(torch.zeros(1, side * side, dims[0]))
    self.patch_embed = nn.ModuleList(
      PatchEmbed(patch if i == 0 else 2, 3 if i == 0 else dims[i - 1], dim)
      for i, dim in enumerate(dims)
    )
    self.blocks = nn.ModuleList(
      nn.ModuleList(Block(dim, side, gamma) for _ in range(depth))
      for dim, side, depth in zip(dims, sides, depths, strict=True)
    )
    self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
    self.head = nn.Linear(dims[-1], num_classes)

  def forward_stage(self, i, x):
    """Images, or the (batch, tokens, dim) of the stage before, to those of stage i."""
    if i > 0:
      side = int(x.shape[1] ** 0.5)
      x = x.transpose(1, 2).reshape(x.shape[0], -1, side, side)
    x = self.patch_embed[i](x)
    if i == 0:
      x = x + self.pos_embed
    for block in self.blocks[i]:
      x = block(x)
    return x

  def forward_features(self, images):
    """Images (batch, 3, height, width) to features (batch, channels), after norm and mean."""
    x = images
    for i in range(len(self.blocks)):
      x = self.forward_stage(i, x)
    return self.norm(x).mean(1)

  def forward(self, images):
    """Images (batch, 3, height, width) to logits (batch, num_classes)."""
    return self.head(self.forward_features(images))


def create(name, image_size=224, num_classes=1000):
  """One of the seven variants (paper, tables 1 and 2)."""
  module, settings = {
    "gfnet-ti": (GFNet, dict(dim=256, depth=12)),
    "gfnet-xs": (GFNet, dict(dim=384, depth=12)),
    "gfnet-s": (GFNet, dict(dim=384, depth=19)),
    "gfnet-b": (GFNet, dict(dim=512, depth=19)),
    "gfnet-h-ti": (GFNetPyramid, dict(dims=(64, 128, 256, 512), depths=(3, 3, 10, 3))),
    "gfnet-h-s": (GFNetPyramid, dict(dims=(96, 192, 384, 768), depths=(3, 3, 10, 3))),
    "gfnet-h-b": (GFNetPyramid, dict(dims=(96, 192, 384, 768), depths=(3, 3, 27, 3))),
  }[name]
  with torch.device("meta"):  # random initial weights would cost seconds
    return module(image_size=image_size, num_classes=num_classes, **settings)


def shapes(module):
  """The shapes of a module's state dict by key, in order."""
  return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def golden_weights(shapes):
  """Deterministic float32 weights, each made from its own key."""
  return {key: _golden_weight(key, shape) for key, shape in shapes.items()}


def _golden_weight(key, shape):
  r = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
  if key.endswith("complex_weight"):
    value = r
  elif "norm" in key and key.endswith("weight"):
    value = 1 + 0.1 * r
  elif key.endswith("gamma"):
    value = 0.5 + 0.1 * r
  elif key.endswith("bias"):
    value = 0.1 * r
  elif key == "pos_embed":
    value = 0.2 * r
  else:
    value = r / np.sqrt(np.prod(shape[1:]))
  return value.astype(np.float32)


def load(module, weights):
  """Fills a module with NumPy arrays by key, strictly, and takes their type; returns it."""
  tensors = {key: torch.from_numpy(array) for key, array in weights.items()}
  module.load_state_dict(tensors, strict=True, assign=True)
  return module
