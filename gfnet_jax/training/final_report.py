"""What comes behind the last step of a run, on request: a report of its mistakes, and a test."""

from typing import Any

from gfnet_jax.checkpoints.finding import list_steps
from gfnet_jax.distributed import agree
from gfnet_jax.inference.evaluate import evaluate
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.training.final_test import write_final_test
from gfnet_jax.training.guards import Guards, Stopped
from gfnet_jax.training.memory import explain_shortage
from gfnet_jax.training.run import Run


def conclude(run: Run, results: dict[str, Any], guards: Guards) -> dict[str, Any] | None:
  """Writes WORKDIR/report and WORKDIR/test.json, as far as wanted, while the guards are on.

  Args:
    run: that is done.
    results: of its last evaluation.
    guards: of the run.

  Returns:
    The results with those of the test; None if a signal stopped it, and then the same command
    does the rest.

  Raises:
    UserError: if something cannot be read or written.
  """
  if not (run.config.get("report") or run.config.data.get("test_split")):
    return results
  guards.checkpoints.wait()
  if not agree(run.inputs.num_steps in list_steps(run.home / "checkpoints")):
    return results  # a full disk, for instance, of which closing the checkpoints tells
  try:
    with explain_shortage(lambda: ["a smaller --config.data.eval_batch_size"]):
      if run.config.get("report"):
        write_final_report(run, guards)
      if run.config.data.get("test_split"):
        results = results | write_final_test(run, guards)
  except Stopped:
    return None
  return results


def write_final_report(run: Run, guards: Guards) -> None:
  """Evaluates the last checkpoint once more, into WORKDIR/report.

  Raises:
    Stopped: if a signal comes.
    UserError: if the report cannot be written.
  """
  saved = load_model(run.home, str(run.inputs.num_steps))
  evaluate(saved, report=run.workdir / "report", on_batch=guards.pulse_or_stop)
