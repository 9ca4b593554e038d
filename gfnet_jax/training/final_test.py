"""The test with which a run ends: the best checkpoint on images that nothing was chosen by."""

from typing import Any

import jax

from gfnet_jax.console import say
from gfnet_jax.errors import UserError
from gfnet_jax.files import to_json, write_atomically
from gfnet_jax.inference.evaluate import evaluate
from gfnet_jax.inference.metrics import format_means
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.text import printable
from gfnet_jax.training.guards import Guards
from gfnet_jax.training.run import Run

FILE = "test.json"


def write_final_test(run: Run, guards: Guards) -> dict[str, Any]:
  """Tests the best checkpoint on `data.test_split`, whose images are read only now.

  The best one is that of the highest top-1, or mIoU, on `data.eval_split`; with moving averages,
  of theirs.

  Args:
    run: that is done, with its checkpoints written.
    guards: of the run.

  Returns:
    What `evaluate` returns, but for its speed, by names that begin with test_; and test_step, the
    checkpoint's. It is in WORKDIR/test.json as well.

  Raises:
    Stopped: if a signal comes.
    UserError: if the split cannot be opened or read, or the file cannot be written.
  """
  data = run.config.data
  saved = load_model(run.home, "best", ema=bool(run.config.ema_decay))
  found = evaluate(saved, split=data.test_split, on_batch=guards.pulse_or_stop)
  del found["images_per_second"]
  results = {f"test_{name}": value for name, value in found.items()} | {"test_step": saved.step}
  images = ", ".join(printable(name, 60) for name in found.get("parts", [data.test_split]))
  say(
    f"Test of step {saved.step}, the best on {data.eval_split}: "
    f"{format_means(found, saved.config['num_classes'])} on {found['images']} images of {images}"
  )
  path = run.workdir / FILE
  try:
    if jax.process_index() == 0:
      write_atomically(path, to_json(results, indent=2) + "\n")
  except OSError as error:
    raise UserError(f"cannot write {path} ({error.strerror}); make room") from error
  return results
