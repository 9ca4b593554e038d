"""The bytes that a compiled program reads and writes, by its text."""

from ahead.hlo import NO_WORK, Computation, Instruction, Program, Step

SLICES = ("dynamic-slice", "slice", "gather")
UPDATE = "dynamic-update-slice"


def traffic(program: Program, steps: list[Step]) -> int:
  """Operands and results of everything that runs by itself, in bytes.

  An operand counts once for an instruction; of one that is only sliced the slices count,
  and of one that is updated in place the update. Caches are left out of account.
  """
  return sum(
    times * (read(program, one, computation) + written(program, one, computation))
    for one, computation, times in steps
    if one.opcode not in NO_WORK
  )


def read(program: Program, instruction: Instruction, computation: Computation) -> int:
  """The bytes of the operands."""
  if instruction.opcode.endswith("-done"):
    return 0
  if instruction.opcode in SLICES:
    return instruction.bytes
  if instruction.opcode == UPDATE:
    return computation[instruction.operands[1]].bytes
  operands = set(instruction.operands)
  if instruction.opcode != "fusion":
    return sum(computation[name].bytes for name in operands)
  (called,) = instruction.attribute("calls")
  fused = program.computations[called]
  sizes = dict.fromkeys(operands, 0)
  for one in fused.values():
    if one.opcode == "parameter":
      name = instruction.operands[int(one.rest[1 : one.rest.index(")")])]
      sizes[name] = max(sizes[name], used(fused, one))
  return sum(sizes.values())


def used(fused: Computation, value: Instruction) -> int:
  """The bytes that a fusion uses of a value."""
  total = 0
  for user in fused.values():
    if value.name not in user.operands:
      continue
    if user.opcode == "bitcast":
      total += used(fused, user)
    elif user.opcode in SLICES:
      total += user.bytes
    elif user.opcode != UPDATE or value.name in user.operands[1:]:
      return value.bytes
  return min(total, value.bytes)


def written(program: Program, instruction: Instruction, computation: Computation) -> int:
  """The bytes of the result that are new."""
  if instruction.opcode.endswith("-start"):
    return 0
  if instruction.opcode == "fusion":
    (called,) = instruction.attribute("calls")
    computation = program.computations[called]
    (instruction,) = [one for one in computation.values() if one.root]
  while instruction.opcode == "bitcast":
    instruction = computation[instruction.operands[0]]
  if instruction.opcode == "tuple":
    return sum(written(program, computation[name], computation) for name in instruction.operands)
  if instruction.opcode == UPDATE:
    return computation[instruction.operands[1]].bytes
  if instruction.opcode == "custom-call":  # of a library, to which bytes are room to work in
    return sum(size for dtype, size in instruction.arrays if dtype != "s8")
  return instruction.bytes
