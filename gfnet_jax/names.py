"""Looking things up by name, with a helpful answer to a typing error."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

from gfnet_jax.errors import UserError

Value = TypeVar("Value")


def look_up(kind: str, name: str, table: Mapping[str, Value]) -> Value:
  """Returns table[name].

  Args:
    kind: what the table holds, for the message: "model", "mixer".
    name: one of its keys.
    table: values by name.

  Raises:
    UserError: for an unknown name, listing the known ones and the nearest.
  """
  if name not in table:
    close = difflib.get_close_matches(str(name), table, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"unknown {kind} {name!r}, expected one of {', '.join(table)}{hint}")
  return table[name]
