"""The one exception for mistakes that the user can correct."""


class UserError(ValueError):
  """Something that the user gave is wrong; the message is one line for them.

  It says what was found, what was expected and what to do. The scripts print it
  without a traceback and exit with code 2.
  """
