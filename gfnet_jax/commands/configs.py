"""Lists the ready-made configs, or shows one, to read it or to begin one's own with.

  gfnet-jax configs
  gfnet-jax configs default
  gfnet-jax configs digits > mine.py

A name, or a file of one's own, is what training takes:

  gfnet-jax train --config imagenet:gfnet-xs
  gfnet-jax train --config mine.py
"""

import ast

from gfnet_jax.command_line import ArgumentParser, program
from gfnet_jax.names import look_up


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog=program("configs"), description=__doc__)
  parser.add_argument("name", nargs="?", help="of the one to show")
  options = parser.parse_args(arguments)
  from gfnet_jax.config_files import ready_made

  files = ready_made()
  if options.name:
    print(look_up("config", options.name, files).read_text("utf-8"), end="")
    return
  for name, path in files.items():
    summary = ast.get_docstring(ast.parse(path.read_text("utf-8"))).partition("\n")[0]
    print(f"{name:{max(map(len, files))}}  {summary}")
