"""Builds the API reference from the docstrings: a page per module, with a search.

  pip install -r requirements-docs.txt
  python tools/api_reference.py --output build/api

Open build/api/index.html in a browser. Broken links between the pages are named, and the exit
code is then 2.
"""

import pkgutil
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project need not be installed

import gfnet_jax
from gfnet_jax.command_line import ArgumentParser, run
from gfnet_jax.errors import UserError

# Commands explain themselves with --help; the other two need PyTorch, and serve the tests.
LEFT_OUT = ("gfnet_jax.__main__", "gfnet_jax.commands", "gfnet_jax.weights.reference")


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog="tools/api_reference.py", description=__doc__)
  parser.add_argument(
    "--output", type=Path, default=Path("build/api"), help="directory (default: %(default)s)"
  )
  options = parser.parse_args(arguments)
  try:
    import pdoc
  except ImportError as error:
    message = "pdoc is not installed; pip install -r requirements-docs.txt"
    raise UserError(message) from error

  pdoc.render.configure(docformat="google")
  with warnings.catch_warnings():
    # The annotations of optax name types by text that cannot be looked up from here.
    warnings.filterwarnings("ignore", "Error parsing type annotation")
    pdoc.pdoc(*modules(), output_directory=options.output)
  broken = broken_links(options.output)
  if broken:
    raise UserError(f"{len(broken)} broken links, such as {broken[0]}; mend the docstring")
  pages = len(list(options.output.rglob("*.html")))
  print(f"{pages} pages, no broken links: {options.output / 'index.html'}")


def modules() -> list[str]:
  """What pdoc documents: the public names, then every package and module by itself."""
  found = pkgutil.iter_modules(gfnet_jax.__path__, "gfnet_jax.")
  names = [module.name for module in found if module.name not in LEFT_OUT]
  return ["gfnet_jax", *names, *(f"!{name}" for name in LEFT_OUT)]


class Page(HTMLParser):
  """The anchors of a page, and where its links lead.

  Attributes:
    anchors: what links to this page may name.
    links: as they are written, those of the web left out.
  """

  def __init__(self, path: Path):
    super().__init__()
    self.anchors, self.links = set(), []
    self.feed(path.read_text())

  def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
    """Called by the parser for each tag."""
    values = dict(attributes)
    self.anchors.add(values.get("id"))
    link = values.get("href") if tag == "a" else None
    if link and not urlsplit(link).scheme:
      self.links.append(link)


def broken_links(directory: Path) -> list[str]:
  """Links between the pages of a directory whose page or anchor is missing, as "PAGE: LINK"."""
  pages = {path.resolve(): Page(path) for path in sorted(directory.rglob("*.html"))}
  broken = []
  for path, page in pages.items():
    for link in page.links:
      name, anchor = unquote(urlsplit(link).path), unquote(urlsplit(link).fragment)
      other = pages.get((path.parent / name).resolve() if name else path)
      if other is None or (anchor and anchor not in other.anchors):
        broken.append(f"{path.relative_to(directory.resolve())}: {link}")
  return broken


if __name__ == "__main__":
  sys.exit(run(main))
