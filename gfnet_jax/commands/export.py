"""Exports a model in a format that other programs read.

The weights by their official names, for PyTorch and whatever reads safetensors:

  gfnet-jax export runs/digits digits.safetensors --format safetensors
  gfnet-jax export runs/digits digits.pth --format torch

A directory for the Hugging Face hub, with a model card, which predict and the others take, too:

  gfnet-jax export runs/digits digits --format pretrained

A program for any batch size, which jax alone runs on CPUs, GPUs and TPUs:

  gfnet-jax export gfnet-xs xs.stablehlo --format stablehlo

A program for ONNX Runtime and other runtimes, and a folder that classifies images in a browser:

  gfnet-jax export gfnet-xs xs.onnx --format onnx
  gfnet-jax export gfnet-xs page --format web

The model is a work directory of training, a checkpoint, an official file or its name, or
hf://OWNER/NAME of the hub:

  gfnet-jax export gfnet-xs xs.safetensors --format safetensors
  gfnet-jax export runs/mine mine.pth --format torch --which best --ema
"""

import argparse
from pathlib import Path

from gfnet_jax.command_line import ArgumentParser, program
from gfnet_jax.commands.predict import name_classes, read_class_names
from gfnet_jax.export.formats import FORMATS, check_destination, check_export
from gfnet_jax.text import printable


def main(arguments: list[str]) -> None:
  options = vars(_parse(arguments))
  checkpoint, path, format = (options.pop(name) for name in ("checkpoint", "out", "format"))
  check_destination(path, format)  # at once, and the rest before the model is loaded
  class_names = options.pop("class_names")
  names = read_class_names(class_names) if class_names else None
  reading = {name: options.pop(name) for name in ("which", "ema", "precision")}
  from gfnet_jax import startup

  startup.check_devices()
  import gfnet_jax

  check_export(path, format, **options)
  saved = gfnet_jax.load_model(checkpoint, **reading)
  if names is not None:
    saved = name_classes(saved, names, class_names)
  report = gfnet_jax.export_model(saved, path, format, **options)
  size = f"{report.pop('bytes'):,} bytes"
  described = ", ".join([size, *(f"{name} {value}" for name, value in report.items())])
  print(f"Wrote {printable(path, 1000)}: {described}")


def _parse(arguments: list[str]) -> argparse.Namespace:
  parser = ArgumentParser(prog=program("export"), description=__doc__)
  parser.add_argument(
    "checkpoint",
    help="work directory of training, a checkpoint, an official file or its name, or hf://OWNER/NAME",
  )
  parser.add_argument("out", help="new file, whose name ends as the format has it, or directory")
  purposes = "; ".join(f"{name}: {format.purpose}" for name, format in FORMATS.items())
  parser.add_argument("--format", choices=FORMATS, required=True, help=purposes)
  parser.add_argument("--which", default="last", help="last, best or a step (default: last)")
  parser.add_argument("--ema", action="store_true", help="take the averaged weights")
  parser.add_argument(
    "--precision", help="highest, default, bf16 or float64 (default: as in training)"
  )
  parser.add_argument(
    "--class-names",
    type=Path,
    metavar="FILE",
    help="with one name per line, or imagenet for its 1000, in place of the model's; weights by "
    "their official names alone hold none",
  )
  _add_flags_of_formats(parser)
  return parser.parse_args(arguments)


def _add_flags_of_formats(parser: argparse.ArgumentParser) -> None:
  # Without a default they are absent unless given, and refused by the other formats.
  group = parser.add_argument_group("stablehlo, onnx and web", argument_default=argparse.SUPPRESS)
  group.add_argument(
    "--input",
    metavar="TYPE",
    help="of stablehlo and onnx: uint8, for RGB images of 0 to 255, or float32, for normalised "
    "ones (default: uint8)",
  )
  group.add_argument(
    "--weights",
    metavar="TYPE",
    help="of onnx and web: of dense layers, float32, float16 or int8 (default: float32)",
  )
  group.add_argument(
    "--runtime",
    type=Path,
    metavar="PATH",
    help="of web: the package onnxruntime-web, packed or a folder (default: fetched with npm)",
  )
