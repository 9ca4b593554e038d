"""Things that are done every so often."""


class Every:
  """Tells after which steps something is due: every `period` steps, and after the last.

  Args:
    period: in steps; a fraction is rounded at each multiple, so that periods given in
      epochs do not drift. 0 for never.
    last: the last step, after which it is always due; None if not.
  """

  def __init__(self, period: float, last: int | None = None):
    # Shorter than a step is every step; the quotient of tiny ones would not be finite.
    self._period, self._last = max(period, 1.0) if period > 0 else 0, last

  def due(self, step: int) -> bool:
    """Whether it is due after this step; steps are counted from 1."""
    if step == self._last:
      return True
    multiple = round(step / self._period) if self._period else 0
    return multiple > 0 and step == round(multiple * self._period)
