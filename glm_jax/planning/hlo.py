"""Reads the text of a compiled XLA program: computations, instructions, and how often loops run."""

import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_LAYOUT = re.compile(r"(?<=\])\{[^}]*\}")
_COMMENT = re.compile(r"/\*.*?\*/")
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)"
    r"|\b(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_KNOWN_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Instruction(NamedTuple):
    name: str
    shape: str  # "bf16[4,128]", or several in parentheses; without layouts
    op: str
    operands: tuple[str, ...]  # names
    text: str  # all after "op("
    is_root: bool  # its value is that of the computation

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs, without the condition of a loop."""
        names = []
        for one, several in _CALLED.findall(self.text):
            names += [one] if one else [name.strip(" %") for name in several.split(",")]
        return tuple(names)

    def attribute(self, name: str) -> str:
        """The value of `name=%value`; empty where it has none."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.text)
        return found[1] if found else ""


Computation = dict[str, Instruction]
"""Instructions by name, in order."""


class Program(NamedTuple):
    entry: str
    computations: dict[str, Computation]


def parse(text: str) -> Program:
    """The computations of a program's text (`jax.stages.Compiled.as_text()`)."""
    entry, computations, current = "", {}, {}
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(_LAYOUT.sub("", _COMMENT.sub("", line))):
            root, name, shape, op, rest = found.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.partition(")")[0])
            current[name] = Instruction(name, shape, op, tuple(operands), rest, bool(root))
    return Program(entry, computations)


def shape_bytes(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple."""
    return sum(_array_bytes(*array) for array in _ARRAY.findall(shape))


def _array_bytes(dtype: str, dims: str) -> int:
    if dtype == "token":
        return 0
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    size = math.prod(int(dim) for dim in dims.split(",") if dim)
    return -(-size * bits // 8)


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; None where that depends on data.

    What XLA annotates, or else what a counter says that starts at a constant, grows by a constant
    and is compared with a constant.
    """
    if annotated := _KNOWN_TRIP_COUNT.search(loop.text):
        return int(annotated[1])
    condition = program.computations[loop.attribute("condition")]
    body = program.computations[loop.attribute("body")]
    test = _root(condition)
    if test.op != "compare" or "direction=LT" not in test.text:
        return None
    index = _tuple_index(condition, test.operands[0])
    limit = _constant(condition, test.operands[1])
    if index is None or limit is None:
        return None
    start = _constant(computation, computation[loop.operands[0]].operands[index])
    step = _step(body, _root(body).operands[index], index)
    return None if start is None or step is None else -(-(limit - start) // step)


def _root(computation: Computation) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.is_root)


def _tuple_index(computation: Computation, name: str) -> int | None:
    element = _uncopied(computation, name)
    if element.op != "get-tuple-element":
        return None
    return int(re.search(r"index=(\d+)", element.text)[1])


def _constant(computation: Computation, name: str) -> int | None:
    value = _uncopied(computation, name)
    number = re.match(r"(-?\d+)\)", value.text)
    return int(number[1]) if value.op == "constant" and number else None


def _step(body: Computation, name: str, index: int) -> int | None:
    """What one run of the body adds to the counter."""
    total = 0
    while (value := _uncopied(body, name)).op == "add":
        name, number = value.operands
        if _constant(body, number) is None:
            name, number = number, name
        added = _constant(body, number)
        if added is None:
            return None
        total += added
    return total if total > 0 and _tuple_index(body, name) == index else None


def _uncopied(computation: Computation, name: str) -> Instruction:
    instruction = computation[name]
    while instruction.op in ("copy", "copy-done", "copy-start", "bitcast", "convert"):
        instruction = computation[instruction.operands[0]]
    return instruction
