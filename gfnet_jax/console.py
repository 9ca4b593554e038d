"""What a run says to whoever watches it."""


def say(line: str) -> None:
  """Prints a line, once for all processes."""
  import jax  # not at the top: worker processes of the data import this, and never say anything

  if jax.process_index() == 0:
    print(line, flush=True)
