"""The report with which a run ends: what its network takes for what."""

from gfnet_jax.checkpoints.finding import list_steps
from gfnet_jax.distributed import agree
from gfnet_jax.inference.evaluate import evaluate
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.training.guards import Guards, Stopped
from gfnet_jax.training.memory import explain_shortage
from gfnet_jax.training.run import Run


def write_final_report(run: Run, guards: Guards) -> bool:
  """Evaluates the last checkpoint once more, into WORKDIR/report, while the guards are on.

  Args:
    run: that is done.
    guards: of the run.

  Returns:
    Whether it was not stopped by a signal; the same command then writes the report.

  Raises:
    UserError: if the report cannot be written.
  """
  guards.checkpoints.wait()
  step = run.inputs.num_steps
  if not agree(step in list_steps(run.home / "checkpoints")):
    return True  # a full disk, for instance, of which closing the checkpoints tells
  try:
    with explain_shortage(lambda: ["a smaller --config.data.eval_batch_size"]):
      saved = load_model(run.home, str(step))
      evaluate(saved, report=run.workdir / "report", on_batch=guards.pulse_or_stop)
  except Stopped:
    return False
  return True
