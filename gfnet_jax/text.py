"""Text from files and networks, made fit for a line on a terminal."""


def printable(text: object, limit: int = 160) -> str:
  """One line of visible characters, at most `limit` of them.

  What is invisible or moves the cursor (line breaks, escape sequences, marks that turn
  the direction of writing, halves of surrogate pairs) appears as in Python's source,
  and what is too long loses its middle. Names of files, classes and tensors, and
  messages of servers and libraries are printed through it.
  """
  characters = str(text)
  if len(characters) > limit:
    half = (limit - 5) // 2
    characters = f"{characters[:half]} ... {characters[len(characters) - half :]}"
  return "".join(
    character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
    for character in characters
  )
