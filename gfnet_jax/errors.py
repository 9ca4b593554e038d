"""The one exception for mistakes that the user can correct."""


class UserError(ValueError):
  """A mistake in what the user gave; the message is one line, written for them.

  It says what was found, what was expected and what to do. The scripts print it
  without a traceback and exit with code 2.
  """
