"""Lists the seven published networks.

  gfnet-jax models

Accuracies are those that the paper and the official repository publish, in percent on the
validation images of ImageNet-1k. Any name will do where a model is asked for:

  gfnet-jax predict gfnet-xs photo.jpg
  gfnet-jax convert gfnet-xs runs/gfnet-xs
"""

from gfnet_jax.command_line import ArgumentParser, program


def main(arguments: list[str]) -> None:
  ArgumentParser(prog=program("models"), description=__doc__).parse_args(arguments)
  from gfnet_jax.models.published import PUBLISHED

  print("name        parameters  image size  published top-1  top-5  file")
  for name, one in PUBLISHED.items():
    size = f"{one.image_size}x{one.image_size}"
    print(f"{name:10}  {one.parameters:10,}  {size:>10}  {one.top1:15}  {one.top5:5}  {name}.pth")
