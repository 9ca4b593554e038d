"""Augmentations of training images, by name, for after the crop and the flip.

To add an augmentation, write a class that is made from the string in
config.augment.auto_augment, and enter it in AUGMENTATIONS:

  class Invert:
    def __init__(self, text: str, *, interpolation: str):
      _, probability = text.split("-")
      self.probability = float(probability)

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
      return ImageOps.invert(image) if rng.random() < self.probability else image

  AUGMENTATIONS = {..., "invert": Invert}

It is then taken by config.augment.auto_augment = "invert-0.5": the word before the first '-'
is looked up, and the rest is the augmentation's own.
"""

import random
from typing import Protocol

from PIL import Image, ImageEnhance

from gfnet_jax.data.affine import parse_affine
from gfnet_jax.data.jitter import parse_jitter
from gfnet_jax.data.randaugment import parse_randaugment
from gfnet_jax.names import look_up


class Augmentation(Protocol):
  """Maps an image of mode RGB to another one of the same mode and size.

  It must be picklable, for worker processes, and everything random in it must be drawn
  from `rng`: a sample is to be the same in any process and after any restart.
  """

  def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image: ...


class MakeAugmentation(Protocol):
  """Makes an augmentation: a class, or a function that returns one.

  Args:
    text: the whole of `auto_augment`, such as rand-m9-mstd0.5-inc1.
    interpolation: 'bilinear', 'bicubic' or 'random', for augmentations that move pixels.

  Raises:
    UserError: if the text is malformed.
  """

  def __call__(self, text: str, *, interpolation: str) -> Augmentation: ...


AUGMENTATIONS: dict[str, MakeAugmentation] = {
  "rand": parse_randaugment,
  "affine": parse_affine,
  "jitter": parse_jitter,
}


def make_augmentation(text: str, *, interpolation: str) -> Augmentation | None:
  """The augmentation that `auto_augment` asks for; None if it is empty.

  Raises:
    UserError: if its first word is not in AUGMENTATIONS, or the rest is malformed.
  """
  if not text:
    return None
  make = look_up("auto_augment", text.partition("-")[0], AUGMENTATIONS)
  return make(text, interpolation=interpolation)


def color_jitter(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
  """Brightness, contrast and saturation by random factors, in random order (torchvision)."""
  enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
  order = rng.sample(range(3), 3)
  factors = [rng.uniform(max(0, 1 - strength), 1 + strength) for _ in enhancers]
  for i in order:
    image = enhancers[i](image).enhance(factors[i])
  return image
