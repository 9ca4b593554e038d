"""Interprets pickles; nothing that a pickle names is imported or called.

A pickle is a program for a small stack machine. Here every instruction is carried out by
our own code: dicts, lists, tuples and plain values become themselves, and what the
classes and functions that it names stand for is up to the caller. Work and memory are
bounded by the number of instructions and, as one of them may hand over again what was
made before, by the sizes of what they hand over. Nothing recurses.
"""

import dataclasses
import io
import pickletools
import warnings
from typing import Any, Protocol

from gfnet_jax.text import printable
from gfnet_jax.weights.kinds import DamagedFileError, UnsuitableFileError

SIZE_LIMIT = 1 << 25  # bytes of one pickle
INSTRUCTIONS = 1_000_000  # in one pickle; a training checkpoint has some ten thousand
HANDED_OVER = 1_000_000  # items and characters, see `_Machine.charge`
NAME_LENGTH = 200  # of a class or function, with its module
CHARACTERS = 16  # of a key in a dict, which count as one item: they are only compared


@dataclasses.dataclass(frozen=True, eq=False)
class Global:
  """A name that a pickle asks for; never looked up."""

  name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Opaque:
  """What is known to be harmless, and is no weight.

  Attributes:
    description: for messages.
    is_tensor: whether it is a tensor, of a kind that is no weight.
    is_number: whether it is a number.
  """

  description: str
  is_tensor: bool = False
  is_number: bool = False

  def __repr__(self) -> str:
    return self.description


MARK = object()
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {  # instructions that push their argument
  *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
  *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
  *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
}
WITHOUT_ATTRIBUTES = (type(None), int, float, str, bytes, bytearray, tuple, list, Global)


class Objects(Protocol):
  """What the names in a pickle stand for; see `interpret` for what may be raised."""

  def allow(self, name: str) -> Global:
    """Called with every name, of bounded length; may raise an exception to refuse it."""

  def call(self, name: str, arguments: tuple) -> Any:
    """What a function or class makes of its arguments.

    The work may grow with the lengths of `arguments` and of the containers in it, not with
    what is deeper.
    """

  def load(self, identifier: Any) -> Any:
    """What is stored elsewhere in the file (`persistent_load` in Python's pickle).

    The work may grow with the length of `identifier`, not with what is in it.
    """


def interpret(data: bytes, objects: Objects) -> tuple[Any, int]:
  """Carries out one pickle.

  Args:
    data: bytes that begin with it.
    objects: what its names stand for; of their exceptions the usual ones for wrong values
      (ValueError, TypeError, IndexError, KeyError, OverflowError) mean damage.

  Returns:
    Its value, and the position of its end. Keys of dicts that are no strings are Opaque.

  Raises:
    DamagedFileError: if it is malformed.
    UnsuitableFileError: if it is too large.
  """
  stream = io.BytesIO(data)
  machine = _Machine(objects)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of pickletools, for escapes that mean nothing
      for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > INSTRUCTIONS:
          raise UnsuitableFileError(
            f"its pickle has more than {INSTRUCTIONS} instructions; save the state dict alone"
          )
        machine.step(opcode.name, argument)
    return machine.stack.pop(), stream.tell()
  except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
    raise DamagedFileError(f"its pickle is malformed ({printable(error)})") from error


class _Machine:
  def __init__(self, objects: Objects):
    self.stack: list[Any] = []
    self.memo: dict[int, Any] = {}
    self.objects = objects
    self.handed_over = 0

  def charge(self, size: int) -> None:
    """Counts what an instruction hands over: work that its own length does not bound."""
    self.handed_over += size
    if self.handed_over > HANDED_OVER:
      raise UnsuitableFileError(
        f"its pickle hands over more than {HANDED_OVER} items; save the state dict alone"
      )

  def top(self) -> Any:
    if self.stack[-1] is MARK:
      raise IndexError("nothing behind the mark")
    return self.stack[-1]

  def pop(self) -> Any:
    self.top()
    return self.stack.pop()

  def pop_to_mark(self) -> list[Any]:
    position = len(self.stack) - 1
    while self.stack[position] is not MARK:  # an IndexError without a mark
      position -= 1
    items = self.stack[position + 1 :]
    del self.stack[position:]
    return items

  def step(self, name: str, argument: Any) -> None:
    """Carries out one instruction, by its name in `pickletools`."""
    stack, memo = self.stack, self.memo
    match name:
      case "PROTO" | "FRAME" | "STOP":
        pass
      case _ if name in LITERALS:
        stack.append(argument)
      case _ if name in CONSTANTS:
        stack.append(CONSTANTS[name])
      case "BINPUT" | "LONG_BINPUT" | "PUT":
        if not 0 <= argument < 1 << 32:  # larger ones could be made to collide
          raise ValueError("an impossible place in the memo")
        memo[argument] = self.top()
      case "MEMOIZE":
        memo[len(memo)] = self.top()
      case "BINGET" | "LONG_BINGET" | "GET":
        stack.append(memo[argument])
      case "MARK":
        stack.append(MARK)
      case "POP":
        stack.pop()
      case "POP_MARK":
        self.pop_to_mark()
      case "DUP":
        stack.append(self.top())
      case "GLOBAL":
        stack.append(self.allow(*argument.split(" ", 1)))
      case "STACK_GLOBAL":
        attribute, module = expect(self.pop(), str), expect(self.pop(), str)
        stack.append(self.allow(module, attribute))
      case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
        if name == "NEWOBJ_EX":
          self.pop()
        arguments, function = expect(self.pop(), tuple), self.pop()
        stack.append(self.call(function, arguments))
      case "BUILD":  # attributes, which no weight needs
        self.pop()
        if isinstance(self.top(), WITHOUT_ATTRIBUTES):
          raise TypeError(f"attributes of a {type(self.top()).__name__}")
      case "BINPERSID":
        self.charge(_length(stack[-1]))
        stack.append(self.objects.load(self.pop()))
      case _:
        self.step_of_container(name)

  def allow(self, module: str, attribute: str) -> Global:
    length = len(module) + len(attribute)
    if length >= NAME_LENGTH:
      raise ValueError(f"a name of {length} characters")
    self.charge(length)
    return self.objects.allow(f"{module}.{attribute}")

  def call(self, function: Any, arguments: tuple) -> Any:
    if isinstance(function, Opaque):  # what it makes is not known either
      return Opaque(function.description)
    name = expect(function, Global).name
    self.charge(len(arguments) + sum(map(_length, arguments)))
    return self.objects.call(name, arguments)

  def dict_of(self, items: list[Any]) -> dict[Any, Any]:
    self.charge(sum(len(key) // CHARACTERS for key in items[::2] if isinstance(key, str)))
    return dict_of(items)

  def step_of_container(self, name: str) -> None:
    stack = self.stack
    match name:
      case "EMPTY_LIST":
        stack.append([])
      case "EMPTY_DICT":
        stack.append({})
      case "EMPTY_TUPLE":
        stack.append(())
      case "EMPTY_SET":
        stack.append(Opaque("a set"))
      case "LIST":
        stack.append(self.pop_to_mark())
      case "DICT":
        stack.append(self.dict_of(self.pop_to_mark()))
      case "TUPLE":
        stack.append(tuple(self.pop_to_mark()))
      case "TUPLE1" | "TUPLE2" | "TUPLE3":
        count = int(name[-1])
        stack.append(tuple([self.pop() for _ in range(count)][::-1]))
      case "FROZENSET":
        self.pop_to_mark()
        stack.append(Opaque("a set"))
      case "ADDITEMS":
        self.pop_to_mark()
        expect(stack[-1], Opaque)
      case "APPEND" | "APPENDS":
        items = [self.pop()] if name == "APPEND" else self.pop_to_mark()
        if isinstance(expect(stack[-1], list | Opaque), list):
          stack[-1].extend(items)
      case "SETITEM" | "SETITEMS":
        items = self.pop_to_mark() if name == "SETITEMS" else [self.pop(), self.pop()][::-1]
        if isinstance(expect(stack[-1], dict | Opaque), dict):
          stack[-1].update(self.dict_of(items))
      case _:
        raise UnsuitableFileError(
          f"its pickle has an instruction that torch.save does not write unless asked for another "
          f"protocol ({name}); load it in PyTorch and save it again"
        )


def expect(value: Any, types: Any) -> Any:
  """Returns the value, or raises a TypeError if it is of none of the types."""
  if not isinstance(value, types):
    raise TypeError(f"a {type(value).__name__} in the wrong place")
  return value


def dict_of(items: list[Any]) -> dict[Any, Any]:
  """A dict of keys and values in turn. Only text is hashed: others could be made to collide."""
  return {
    key if isinstance(key, str) else Opaque(_describe(key)): value
    for key, value in zip(items[::2], items[1::2], strict=True)
  }


def _length(value: Any) -> int:
  return len(value) if isinstance(value, tuple | list | dict) else 0


def _describe(value: Any) -> str:
  is_small = type(value) is int and value.bit_length() <= 64
  return str(value) if is_small else type(value).__name__
