"""How robust is a model? One table over all test sets that are found.

  python tools/robustness.py gfnet-xs --data-dir DIR
  python tools/robustness.py runs/digits --attack-eps 8
  python tools/robustness.py runs/digits --attack-eps 16 --sheet attacked.png     # only draws

In DIR, as TFDS data sets or unpacked (docs/robustness.md has the names): the validation images of
ImageNet, clean and under FGSM and PGD; ImageNet-A, -R, -V2, -Sketch, ReaL and -C. A model of other
classes is attacked on the evaluation split that it was trained with. What is not there is left out;
nothing is downloaded. Rows are printed as they come.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project need not be installed

from gfnet_jax.command_line import ArgumentParser, run


def main(arguments: list[str]) -> None:
  parser = ArgumentParser(prog="tools/robustness.py", description=__doc__)
  parser.add_argument("checkpoint", help="as for eval.py: a work directory, a file or a name")
  parser.add_argument("--which", default="last", help="last, best or a step (default: %(default)s)")
  parser.add_argument("--data-dir", default="", help="directory of all data sets")
  parser.add_argument("--data", help="what to attack (default: ImageNet's validation images)")
  parser.add_argument(
    "--attack-eps", type=float, default=1.0, metavar="N", help="of 255, for both (default: 1)"
  )
  parser.add_argument("--batch-size", type=int, help="over all devices (default: as in training)")
  parser.add_argument("--output", type=Path, metavar="FILE", help="all results as JSON")
  parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw what pgd does, and end")
  options = parser.parse_args(arguments)
  if options.sheet and options.output:
    parser.error("--sheet only draws, expected no --output beside it")

  from gfnet_jax import startup

  startup.start()
  startup.check_devices()
  from gfnet_jax.errors import UserError
  from gfnet_jax.files import make_directory_of, open_atomically, to_json, write_atomically
  from gfnet_jax.inference.attacked_sheet import draw_attacked
  from gfnet_jax.inference.attacks import ATTACKS, make_attack
  from gfnet_jax.inference.robustness import measure_robustness, to_markdown
  from gfnet_jax.inference.saved_model import load_model

  attacks = [make_attack(name, eps=options.attack_eps) for name in ATTACKS]
  for file in filter(None, (options.output, options.sheet)):
    make_directory_of(file)
  saved = load_model(options.checkpoint, options.which)
  if options.sheet:
    sheet = draw_attacked(saved, attacks[-1], data=options.data, data_dir=options.data_dir or None)
    with open_atomically(options.sheet) as file:
      sheet.save(file, "PNG", optimize=True)
    print(f"Drawn: {options.sheet}, images under {attacks[-1]}")
    return
  rows = []
  found = measure_robustness(
    saved, options.data_dir, data=options.data, attacks=attacks, batch_size=options.batch_size
  )
  for row in found:
    rows.append(row)
    # The head of the table with the first row, then one row after the other.
    print(to_markdown(rows) if len(rows) == 1 else to_markdown([row]).splitlines()[-1], flush=True)
    if options.output:
      text = to_json([one._asdict() for one in rows], indent=2)
      write_atomically(options.output, text + "\n")
  if not rows:
    raise UserError(
      f"nothing to evaluate on in {options.data_dir or 'the directory of TFDS'}, expected data "
      "sets as in docs/robustness.md; set --data-dir or --data"
    )


if __name__ == "__main__":
  sys.exit(run(main))
