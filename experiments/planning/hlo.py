"""Reads the operations of a compiled program from its text."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_LINE = re.compile(
  r'^\s*(?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<type>\(.*?\)|\S+) '
  r'(?P<opcode>[a-z][\w-]*)\((?P<rest>.*)$'
)
_MODULE = re.compile(r'^HloModule ([\w.-]+)')
_HEAD = re.compile(r'^(?:ENTRY )?%?([\w.-]+) \(.*\{$')
_ARRAY = re.compile(r'\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]')
_CALLED = re.compile(r'\b(?:calls|to_apply)=%?([\w.-]+)')
# In a dot, and in the call of a library's product that XLA replaces it by.
_CONTRACTED = re.compile(r'lhs_contracting_dim\w+[":=]+[{[]([\d",]*)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# Operations that read no more of their first operand than they return.
_SLICING = {'slice', 'dynamic-slice', 'gather'}
# Operations that update their first operand in place: the index of the operand
# that holds the new values.
_UPDATE = {'dynamic-update-slice': 1, 'scatter': 2}
_CALLS = {'fusion', 'call'}


class Operation(NamedTuple):
  """One line of a program."""

  opcode: str  # such as 'dot'
  # The shape and bytes of each array that it returns, without the workspace of
  # a library's product.
  arrays: Sequence[tuple[tuple[int, ...], int]]
  operands: Sequence[str]  # names of the operations whose results it takes
  op_name: str  # name stack of the Python code that it comes from
  called: str  # the computation that it calls, or an empty string
  # The axes of the left operand that a product sums over; None for others.
  contracted: Sequence[int] | None

  @property
  def size(self) -> int:
    """The bytes of all arrays that it returns."""
    return sum(size for _, size in self.arrays)


class Program:
  """The operations of a compiled program, by name.

  Args:
    text: the result of `jax.stages.Compiled.as_text()`.
  """

  def __init__(self, text: str):
    module = _MODULE.match(text)
    self.module = module[1] if module else ''
    self.operations: dict[str, Operation] = {}
    # The operations of each computation in order; it returns the last one.
    self.computations: dict[str, list[str]] = {}
    names: list[str] = []
    for line in text.splitlines():
      # Long tuples have comments with the index of an element.
      line = re.sub(r'/\*.*?\*/', '', line)
      if head := _HEAD.match(line):
        names = self.computations.setdefault(head[1], [])
      elif found := _LINE.match(line):
        self.operations[found['name']] = _operation(found)
        names.append(found['name'])

  def inside(self, name: str) -> Iterator[str]:
    """Yields the operation itself, or those inside a fusion or call."""
    called = self.operations[name].called
    if self.operations[name].opcode not in _CALLS or not called:
      yield name
      return
    for inner in self.computations[called]:
      yield from self.inside(inner)

  def flops(self, name: str) -> int:
    """Counts the operations of matrix products.

    A multiplication and an addition are 2 operations.
    """
    total = 0
    for inner in self.inside(name):
      operation = self.operations[inner]
      if operation.contracted is not None:
        left = self.operations[operation.operands[0]].arrays[0][0]
        summed = math.prod(left[axis] for axis in operation.contracted)
        total += 2 * summed * math.prod(operation.arrays[0][0])
    return total

  def bytes(self, name: str) -> int:
    """Counts the bytes that are read and written if nothing is in the cache.

    For arrays that are sliced, gathered from or updated in place, only the part
    that is read or written is counted.
    """
    operation = self.operations[name]
    if operation.opcode not in _CALLS or not operation.called:
      return self._read_and_written(name)
    inner = self.computations[operation.called]
    read = sum(
      self._read_of(inner, each)
      for each in inner
      if self.operations[each].opcode == 'parameter'
    )
    last = self.operations[inner[-1]]
    written = operation.size
    if last.opcode in _UPDATE:
      written = self.operations[last.operands[_UPDATE[last.opcode]]].size
    return read + written

  def _read_and_written(self, name: str) -> int:
    operation = self.operations[name]
    if operation.opcode in _SLICING:
      return 2 * operation.size
    operands = [self.operations[each].size for each in operation.operands]
    if operation.opcode in _UPDATE:
      return 2 * sum(operands[1:])
    return operation.size + sum(operands)

  def _read_of(self, names: Sequence[str], parameter: str) -> int:
    """The bytes of a parameter that the operations of a fusion read."""
    users = [
      self.operations[name]
      for name in names
      if parameter in self.operations[name].operands
    ]
    read = 0
    for user in users:
      is_first = user.operands[0] == parameter
      if user.opcode in _SLICING and is_first:
        read += user.size
      elif user.opcode not in _UPDATE or not is_first:
        return self.operations[parameter].size
    return read


def _operation(found: re.Match) -> Operation:
  rest = found['rest']
  called, contracted = _CALLED.search(rest), _CONTRACTED.search(rest)
  op_name = _OP_NAME.search(rest)
  operands, _, _ = rest.partition(')')
  arrays = []
  for _, bits, axes in _ARRAY.findall(found['type']):
    shape = _integers(axes)
    size = math.ceil(math.prod(shape) * int(bits or 8) / 8)
    arrays.append((shape, size))
  return Operation(
    opcode=found['opcode'],
    arrays=arrays[:1] if contracted else arrays,
    operands=re.findall(r'%([\w.-]+)', operands),
    op_name=op_name[1] if op_name else '',
    called=called[1] if called else '',
    contracted=_integers(contracted[1]) if contracted else None,
  )


def _integers(text: str) -> tuple[int, ...]:
  return tuple(map(int, re.findall(r'\d+', text)))
