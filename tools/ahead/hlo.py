"""The text of a program as XLA has optimised it: its instructions, and how often each runs.

The syntax is that of `jax.stages.Compiled.as_text()` (https://openxla.org/xla/operation_semantics
names the operations).
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# Bytes of an element; whatever else has a shape (tokens, opaque handles) holds no data.
ITEM_BYTES = {
  **dict.fromkeys(("s4", "u4"), 0.5),
  **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
  **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
  **dict.fromkeys(("s32", "u32", "f32"), 4),
  **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
  "c128": 16,
}
COLLECTIVES = (
  *("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"),
  *("ragged-all-to-all", "collective-broadcast"),
)
# What names values and moves nothing.
NO_WORK = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
  *("add-dependency", "opt-barrier", "partition-id", "replica-id"),
}


class Instruction(NamedTuple):
  """One line of a program.

  Attributes:
    name: unique in the program.
    shape: of the result, as written: "f32[8,128]{1,0}", or a tuple of those.
    opcode: "fusion", "add", "all-reduce-start".
    operands: names of instructions in the same computation.
    rest: what follows the opcode: operands, attributes, metadata, configuration.
    root: whether it is the result of its computation.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  rest: str
  root: bool

  @property
  def arrays(self) -> list[tuple[str, int]]:
    """(type, bytes) of every array in the result, without the padding of tiles."""
    return arrays(self.shape)

  @property
  def bytes(self) -> int:
    """Of the result."""
    return sum(size for _, size in self.arrays)

  @property
  def memory_bytes(self) -> int:
    """Of the result, without what lies in another memory, such as the vector memory of a TPU."""
    return sum(size for _, size in arrays(re.sub(r"\w+\[[\d,]*\]\{[^}]*S\(\d\)\}", "", self.shape)))

  @property
  def op_name(self) -> str:
    """Where in the Python program it comes from, "jit(step)/global_filter/dot_general", or ""."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ""

  @property
  def collective(self) -> str | None:
    """Its kind if it is a collective; an asynchronous one is its end, whose shape is the result."""
    kind = self.opcode.removesuffix("-done")
    return kind if kind in COLLECTIVES else None

  def attribute(self, name: str) -> list[str]:
    """The computations that an attribute names: calls, body, condition, to_apply, ..."""
    found = re.search(rf"\b{name}=(\{{[^}}]*\}}|%[\w.-]+)", self.rest)
    return re.findall(r"%([\w.-]+)", found[1]) if found else []


Computation = dict[str, Instruction]  # by name, in order


class Step(NamedTuple):
  """An instruction that runs by itself, not as a part of a fusion.

  Attributes:
    instruction: what runs.
    computation: the instructions around it.
    times: how often.
  """

  instruction: Instruction
  computation: Computation
  times: int


class Program:
  """The computations of a program by name.

  Attributes:
    computations: all of them.
    entry: the one that is run.
    unknown_loops: loops whose length the text does not tell; `steps` counts them once.
  """

  def __init__(self, text: str):
    self.computations: dict[str, Computation] = {}
    self.entry: Computation = {}
    self.unknown_loops = 0
    computation = None
    for line in text.splitlines():
      if found := re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line):
        computation = self.computations[found[2]] = {}
        if found[1]:
          self.entry = computation
      elif line.startswith("}"):
        computation = None
      elif computation is not None and (instruction := parse(line)):
        computation[instruction.name] = instruction

  def steps(self) -> list[Step]:
    """Everything that runs, loops as often as their conditions say."""
    self.unknown_loops = 0
    return self._steps(self.entry, 1)

  def _steps(self, computation: Computation, times: int) -> list[Step]:
    steps = []
    for one in computation.values():
      if one.opcode == "while":
        (condition,), (body,) = one.attribute("condition"), one.attribute("body")
        trips = self._trips(one, condition)
        self.unknown_loops += trips is None
        steps += self._steps(self.computations[body], times * (1 if trips is None else trips))
      elif one.opcode == "call":
        (called,) = one.attribute("to_apply")
        steps += self._steps(self.computations[called], times)
      elif one.opcode == "conditional":
        attributes = ("branch_computations", "true_computation", "false_computation")
        branches = [
          self._steps(self.computations[branch], times)
          for attribute in attributes
          for branch in one.attribute(attribute)
        ]
        steps += max(branches, key=written)
      else:
        steps.append(Step(one, computation, times))
    return steps

  def _trips(self, loop: Instruction, condition: str) -> int | None:
    """How often a loop runs that counts from 0, as those of jax.lax.scan; None if it may vary."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
      return int(known[1])
    inside = self.computations[condition]
    parts = [part for one in inside.values() for part, _ in self.parts(one, inside)]
    compared = [part for part in parts if part.opcode == "compare"]
    limits = [
      int(number[1])
      for part in parts
      if part.opcode == "constant" and re.match(r"[su](32|64)\[\]", part.shape)
      if (number := re.match(r"\((\d+)\)", part.rest))
    ]
    if len(compared) == len(limits) == 1 and "direction=LT" in compared[0].rest:
      return limits[0]
    return None

  def parts(
    self, instruction: Instruction, computation: Computation
  ) -> Iterator[tuple[Instruction, Computation]]:
    """It and what is inside it, if it is a fusion or asynchronous, each with what is around it."""
    yield instruction, computation
    for called in instruction.attribute("calls"):
      for inner in self.computations[called].values():
        yield from self.parts(inner, self.computations[called])

  def root(self, instruction: Instruction) -> Instruction:
    """What a fusion ends with; any other instruction itself."""
    for called in instruction.attribute("calls"):
      return next(self.root(one) for one in self.computations[called].values() if one.root)
    return instruction

  def op_name(self, instruction: Instruction) -> str:
    """Where it comes from; a fusion has a name of its own, mostly that of its root."""
    return instruction.op_name or self.root(instruction).op_name


def arrays(shape: str) -> list[tuple[str, int]]:
  """(type, bytes) of every array in a shape."""
  return [
    (dtype, math.ceil(ITEM_BYTES[dtype] * math.prod(map(int, re.findall(r"\d+", sizes)))))
    for dtype, sizes in re.findall(r"(\w+)\[([\d,<=]*)\]", shape)
    if dtype in ITEM_BYTES
  ]


def written(steps: list[Step]) -> int:
  """The bytes of all results that are new."""
  return sum(one.bytes * times for one, _, times in steps if one.opcode not in NO_WORK)


def parse(line: str) -> Instruction | None:
  """The instruction on a line `[ROOT] %name = shape opcode(operands), attributes`."""
  found = re.match(r"\s+(ROOT )?%([\w.-]+) = ", line)
  if not found:
    return None
  rest = line[found.end() :]
  end = closing(rest) if rest.startswith("(") else rest.index(" ")
  shape, rest = rest[:end], rest[end:].lstrip()
  opcode, parenthesis, rest = rest.partition("(")
  rest = parenthesis + rest
  operands = re.findall(r"%([\w.-]+)", rest[: closing(rest)])
  return Instruction(found[2], shape, opcode, tuple(operands), rest, bool(found[1]))


def closing(text: str) -> int:
  """The end of the parenthesis with which a text begins."""
  depth = 0
  for found in re.finditer(r"[()]", text):
    depth += 1 if found[0] == "(" else -1
    if depth == 0:
      return found.end()
  return len(text)
