"""What the paper and the official repository publish of the seven networks; nothing heavy."""

from typing import NamedTuple


class Published(NamedTuple):
  """A network at its published image size, with 1000 classes.

  Attributes:
    parameters: their number, counted on the official implementation.
    top1: accuracy on the validation images of ImageNet-1k, in percent.
    top5: the same of the five most probable classes.
    image_size: height and width of the images, in pixels.
  """

  parameters: int
  top1: float
  top5: float
  image_size: int = 224


# Accuracies of the official README.md.
PUBLISHED = {
  "gfnet-ti": Published(7_511_784, 74.6, 92.2),
  "gfnet-xs": Published(15_985_768, 78.6, 94.2),
  "gfnet-s": Published(24_869_608, 80.0, 94.9),
  "gfnet-b": Published(43_120_616, 80.7, 95.1),
  "gfnet-h-ti": Published(15_085_096, 80.1, 95.1),
  "gfnet-h-s": Published(32_162_632, 81.5, 95.6),
  "gfnet-h-b": Published(53_744_200, 82.9, 96.2),
}
