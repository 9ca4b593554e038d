"""RandAugment (arXiv:1909.13719) as in the official recipe (timm 0.4.12 auto_augment.py).

An augmentation is given as a string, such as rand-m9-mstd0.5-inc1: `rand`, then
sections of letters and a number, in any order:

    m     magnitude, the mean level of an operation (default 10)
    mstd  standard deviation of the level (default 0); above 100, the level is
          uniform from 0 to the magnitude
    mmax  largest level (default 10)
    n     operations drawn per image, with replacement (default 2)
    p     probability with which a drawn operation is applied (default 0.5)
    inc   1: every operation grows stronger with its level; 0 (default): posterise,
          solarise and the four enhancements keep their original scales. timm took
          inc0 for 1 before release 1.0.31.
"""

import dataclasses
import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageOps

from gfnet_jax.data.imagenet import MEAN
from gfnet_jax.errors import UserError

FILL = tuple(min(255, round(255 * mean)) for mean in MEAN)  # what geometric operations uncover
FULL_LEVEL = 10  # the level at which arguments reach the end of their published range
UNIFORM_STD = 100  # a larger mstd asks for uniform levels

INTERPOLATIONS = {
  "bilinear": (Image.Resampling.BILINEAR,),
  "bicubic": (Image.Resampling.BICUBIC,),
  "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}


def draw_interpolation(name: str, rng: random.Random) -> Image.Resampling:
  """The filter of that name; only 'random', which is bilinear or bicubic, takes a draw."""
  filters = INTERPOLATIONS[name]
  return filters[0] if len(filters) == 1 else rng.choice(filters)


class Operation(NamedTuple):
  """One operation: how its level becomes an argument, and what it does to an image.

  Attributes:
    name: as in the official list.
    argument: maps a level, of either sign if signed, to the argument.
    apply: maps (image, argument) to an image; geometric operations take the filter as well.
    signed: whether the level gets a random sign.
    geometric: whether pixels move.
  """

  name: str
  argument: Callable[[float], float | None]
  apply: Callable[..., Image.Image]
  signed: bool = False
  geometric: bool = False


def _scaled(limit: float) -> Callable[[float], float]:
  return lambda level: level / FULL_LEVEL * limit


def _no_argument(level: float) -> None:
  return None


def _posterize_bits(level: float) -> int:
  return int(level / FULL_LEVEL * 4)


def _solarize_threshold(level: float) -> int:
  return min(256, int(level / FULL_LEVEL * 256))


def _solarize_add_amount(level: float) -> int:
  return min(128, int(level / FULL_LEVEL * 110))


def _posterize(image: Image.Image, bits: int) -> Image.Image:
  # Pillow 13 raises for 0 bits, which older releases took for a black image.
  return ImageOps.posterize(image, min(bits, 8)) if bits > 0 else Image.new("RGB", image.size)


def _solarize_add(image: Image.Image, amount: int) -> Image.Image:
  table = [min(255, value + amount) if value < 128 else value for value in range(256)]
  return image.point(table * 3)


def _affine(image: Image.Image, matrix: Sequence[float], resample: Image.Resampling) -> Image.Image:
  return image.transform(
    image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=FILL
  )


def _rotate(image: Image.Image, degrees: float, resample: Image.Resampling) -> Image.Image:
  return image.rotate(degrees, resample=resample, fillcolor=FILL)


def _shear_x(image: Image.Image, factor: float, resample: Image.Resampling) -> Image.Image:
  return _affine(image, (1, factor, 0, 0, 1, 0), resample)


def _shear_y(image: Image.Image, factor: float, resample: Image.Resampling) -> Image.Image:
  return _affine(image, (1, 0, 0, factor, 1, 0), resample)


def _translate_x(image: Image.Image, fraction: float, resample: Image.Resampling) -> Image.Image:
  return _affine(image, (1, 0, fraction * image.width, 0, 1, 0), resample)


def _translate_y(image: Image.Image, fraction: float, resample: Image.Resampling) -> Image.Image:
  return _affine(image, (1, 0, 0, 0, 1, fraction * image.height), resample)


def _enhancement(enhancer: Callable) -> Callable[[Image.Image, float], Image.Image]:
  return lambda image, factor: enhancer(image).enhance(factor)


def _operations(
  *, bits: Callable, threshold: Callable, factor: Callable, signed_factor: bool
) -> tuple[Operation, ...]:
  """The 15 operations in the official order, given the scales that `inc` changes."""
  enhancements = tuple(
    Operation(enhancer.__name__, factor, _enhancement(enhancer), signed=signed_factor)
    for enhancer in (
      ImageEnhance.Color,
      ImageEnhance.Contrast,
      ImageEnhance.Brightness,
      ImageEnhance.Sharpness,
    )
  )
  moved = dict(signed=True, geometric=True)
  return (
    Operation("AutoContrast", _no_argument, lambda image, _: ImageOps.autocontrast(image)),
    Operation("Equalize", _no_argument, lambda image, _: ImageOps.equalize(image)),
    Operation("Invert", _no_argument, lambda image, _: ImageOps.invert(image)),
    Operation("Rotate", _scaled(30), _rotate, **moved),
    Operation("Posterize", bits, _posterize),
    Operation("Solarize", threshold, ImageOps.solarize),
    Operation("SolarizeAdd", _solarize_add_amount, _solarize_add),
    *enhancements,
    Operation("ShearX", _scaled(0.3), _shear_x, **moved),
    Operation("ShearY", _scaled(0.3), _shear_y, **moved),
    Operation("TranslateXRel", _scaled(0.45), _translate_x, **moved),
    Operation("TranslateYRel", _scaled(0.45), _translate_y, **moved),
  )


OPERATIONS = _operations(
  bits=_posterize_bits,
  threshold=_solarize_threshold,
  factor=lambda level: level / FULL_LEVEL * 1.8 + 0.1,
  signed_factor=False,
)
INCREASING_OPERATIONS = _operations(
  bits=lambda level: 4 - _posterize_bits(level),
  threshold=lambda level: 256 - _solarize_threshold(level),
  factor=lambda level: max(0.1, 1 + level / FULL_LEVEL * 0.9),
  signed_factor=True,
)


class Step(NamedTuple):
  """An operation with its drawn argument and, for geometric ones, its filter."""

  operation: Operation
  argument: float | None
  resample: Image.Resampling | None

  def __call__(self, image: Image.Image) -> Image.Image:
    if self.resample is None:
      return self.operation.apply(image, self.argument)
    return self.operation.apply(image, self.argument, self.resample)


def choose_operations(
  operations: Sequence[Operation], count: int, rng: random.Random
) -> list[Operation]:
  """Draws operations uniformly, with replacement."""
  return rng.choices(operations, k=count)


@dataclasses.dataclass(frozen=True)
class RandAugment:
  """Applies randomly drawn operations to an image.

  The fields are explained in the table at the top of this module; `interpolation` is the
  filter of geometric operations: 'bilinear', 'bicubic' or 'random', which draws one of the
  two for every operation.
  """

  magnitude: float = FULL_LEVEL
  magnitude_std: float = 0.0
  magnitude_max: float = FULL_LEVEL
  num_operations: int = 2
  probability: float = 0.5
  increasing: bool = False
  interpolation: str = "bicubic"

  def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
    """Augments an image of mode RGB; everything random comes from `rng`."""
    for step in self.draw(rng):
      image = step(image)
    return image

  def draw(self, rng: random.Random) -> list[Step]:
    """Draws what to do with one image, in the official order of draws."""
    operations = INCREASING_OPERATIONS if self.increasing else OPERATIONS
    chosen = choose_operations(operations, self.num_operations, rng)
    return [self._draw_step(op, rng) for op in chosen if rng.random() <= self.probability]

  def _draw_step(self, operation: Operation, rng: random.Random) -> Step:
    level = self._draw_level(rng)  # also for operations without argument, as in timm
    if operation.signed and rng.random() > 0.5:
      level = -level
    resample = draw_interpolation(self.interpolation, rng) if operation.geometric else None
    return Step(operation, operation.argument(level), resample)

  def _draw_level(self, rng: random.Random) -> float:
    if self.magnitude_std > UNIFORM_STD:
      level = rng.uniform(0, self.magnitude)
    elif self.magnitude_std > 0:
      level = rng.gauss(self.magnitude, self.magnitude_std)
    else:
      level = self.magnitude
    return min(max(level, 0), self.magnitude_max)


SECTIONS = {
  "m": ("magnitude", float),
  "mstd": ("magnitude_std", float),
  "mmax": ("magnitude_max", float),
  "n": ("num_operations", int),
  "p": ("probability", float),
  "inc": ("increasing", lambda number: bool(int(number))),
}


def parse_randaugment(text: str, *, interpolation: str = "bicubic") -> RandAugment:
  """The augmentation that a string such as rand-m9-mstd0.5-inc1 stands for.

  Raises:
    UserError: for an unknown or malformed section.
  """
  _, *sections = text.split("-")
  fields = {}
  for section in sections:
    match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", section)
    name, number = match.groups() if match else (section, "")
    try:
      field, convert = SECTIONS[name]
      fields[field] = convert(number)
    except (KeyError, ValueError):
      raise UserError(
        f"auto_augment {text!r} has the section {section!r}, expected one of "
        f"{', '.join(SECTIONS)} and a number, such as m9, mstd0.5 or n2"
      ) from None
  if fields.get("probability", 0) > 1:
    raise UserError(f"auto_augment {text!r} has the probability {fields['probability']}, above 1")
  return RandAugment(**fields, interpolation=interpolation)
