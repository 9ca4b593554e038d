"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
  """Something given by the user is wrong; the message is one line for them.

  It says what was found, what was expected and what to do. The scripts print it
  without a traceback and exit with code 2.
  """
