"""Samples to read in worker processes, which need not import the tests for them."""

import os
import signal
from pathlib import Path
from typing import NoReturn

import numpy as np

from gfnet_jax.errors import UserError


class Numbers:
  """Sample i is three times i; at a given index, something happens instead.

  Args:
    count: of samples.
    at: index at which it happens.
    event: name of a function of this module.
    log: file to which a byte is appended for every sample that is begun.
  """

  def __init__(self, count: int, at: int = -1, event: str = "", log: str = ""):
    self.count, self.at, self.event, self.log = count, at, event, log

  def __getitem__(self, i: int) -> dict:
    if self.log:
      with Path(self.log).open("ab") as log:
        log.write(b".")
    if i == self.at:
      globals()[self.event]()
    return {"flag": np.bool_(i % 2), "empty": np.zeros((0, 2), np.float32), "x": np.full(3, i)}


class Deadly(Numbers):
  """Kills the process in which it is unpickled."""

  def __reduce__(self):
    return kill, ()


class Mute:
  """A key that cannot be read again."""

  def __reduce__(self):
    return raise_value_error, ()


class Unpicklable(Exception):
  """An exception that can be pickled, but not be read again."""

  def __init__(self, first: int, second: int):
    super().__init__(f"of {first} and {second}")


def raise_user_error() -> NoReturn:
  raise UserError("mend it")


def raise_value_error() -> NoReturn:
  raise ValueError("a bug")


def raise_unpicklable() -> NoReturn:
  raise Unpicklable(7, 8)


def raise_stop_iteration() -> NoReturn:
  raise StopIteration


def exit_with_0() -> NoReturn:
  os._exit(0)


def kill() -> None:
  os.kill(os.getpid(), signal.SIGKILL)
