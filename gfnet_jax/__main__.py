"""The program `gfnet-jax`, also `python -m gfnet_jax`: a command, and what follows is its own."""

import importlib
import sys
from typing import NamedTuple

import gfnet_jax
from gfnet_jax.command_line import ArgumentParser, program, run
from gfnet_jax.names import look_up


class Command(NamedTuple):
  """A module gfnet_jax.commands.NAME with main(arguments): what it does, and an example."""

  purpose: str
  example: str


COMMANDS = {
  "train": Command("train a network, or continue a run", "--config digits --workdir runs/digits"),
  "eval": Command("measure accuracy on a data set", "--checkpoint runs/digits"),
  "predict": Command("name what images show", "gfnet-xs photo.jpg holidays/"),
  "convert": Command("PyTorch weights in, and out again", "gfnet-xs.pth runs/gfnet-xs"),
  "export": Command("write a model for other programs", "runs/digits digits.pth --format torch"),
  "prepare": Command("write a data set for TFDS", "~/imagenet --output ~/tensorflow_datasets"),
  "plot": Command("draw training runs on one sheet", "runs/digits runs/wide"),
  "filters": Command("draw the filters of a model", "runs/digits --output filters"),
  "models": Command("list the seven published networks", ""),
  "configs": Command("list the ready-made configs, or show one", "digits"),
}


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog=program("").rstrip(), description=_describe())
  parser.add_argument("--version", action="version", version=f"gfnet-jax {gfnet_jax.__version__}")
  parser.add_argument("command", help="one of these; COMMAND --help explains it")
  options = parser.parse_args(arguments[:1])
  look_up("command", options.command, COMMANDS)
  importlib.import_module(f"gfnet_jax.commands.{options.command}").main(arguments[1:])


def _describe() -> str:
  lines = ["Global Filter Networks: train, evaluate and use them.", ""]
  for name, command in COMMANDS.items():
    lines.append(f"  {command.purpose:41} gfnet-jax {name} {command.example}".rstrip())
  return "\n".join(lines)


def start() -> int:
  """Runs the command that the program was called with; returns the exit code."""
  return run(main)


if __name__ == "__main__":
  sys.exit(start())
