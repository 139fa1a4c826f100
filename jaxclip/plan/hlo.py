"""Reading a program that the TPU's compiler has made: its loops, its collectives, its estimated cycles."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(
    r"(?:to_apply|calls|called_computations|(?:branch|true|false)_computations?)=\{?((?:%[\w.\-]+(?:, )?)+)\}?"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program: `name = shape opcode(rest`."""

    name: str
    shape: str
    opcode: str
    rest: str

    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.rest.split(")", 1)[0])

    def index(self) -> int:
        """Of a get-tuple-element, the place it reads."""
        found = re.search(r"index=(\d+)", self.rest)
        return int(found[1]) if found else 0

    def named(self, attribute: str) -> str:
        """The computation an attribute such as `body` names, or ""."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of one kind (`send`: to other slices): bytes of its result on each device, and how often it runs."""

    kind: str
    bytes: float
    times: int
    shape: str


class Program:
    """A compiled program's text, taken apart.

    Attributes:
      unknown_loops: names of loops whose number of turns could not be read; they count once.
    """

    def __init__(self, text: str):
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._entry = ""
        self.unknown_loops: set[str] = set()
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if head := _HEAD.match(line):
                current = self._computations[head[2]] = {}
                self._entry = head[2] if head[1] else self._entry
            elif found := _INSTRUCTION.match(line):
                current[found[1]] = Instruction(*found.groups())

    def run(self) -> Iterator[tuple[Instruction, int]]:
        """The instructions a step runs, each with how often; those inside fusions are part of the fusion.

        All branches of a conditional are counted: which one is taken is not known here.
        """
        yield from self._run(self._entry, 1)

    def collectives(self) -> list[Collective]:
        """Every collective of a step; a start and its done count as one."""
        found = []
        for instruction, times in self.run():
            collective = self._collective(instruction)
            if collective:
                kind, shape = collective
                found.append(Collective(kind, array_bytes(shape), times, shape))
        return found

    def cycles(self) -> int:
        """The compiler's own estimate, loops multiplied out, of everything but communication."""
        total = 0
        for instruction, times in self.run():
            found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
            total += times * int(found[1]) if found else 0
        return total

    def shapes(self) -> set[str]:
        """The array types of all values of the program, parts of fusions included: bf16[128,512] and so on."""
        return {
            match[0]
            for computation in self._computations.values()
            for instruction in computation.values()
            for match in _ARRAY.finditer(instruction.shape)
        }

    def _run(self, name: str, times: int) -> Iterator[tuple[Instruction, int]]:
        computation = self._computations.get(name, {})
        for instruction in computation.values():
            yield instruction, times
            if instruction.opcode == "while":
                turns = self._turns(instruction, computation)
                yield from self._run(instruction.named("body"), times * turns)
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for group in _CALLED.findall(instruction.rest):
                    for called in re.findall(r"%([\w.\-]+)", group):
                        yield from self._run(called, times)

    def _collective(self, instruction: Instruction) -> tuple[str, str] | None:
        """The kind of a collective and the shape of what arrives; None for other instructions."""
        opcode, shape = instruction.opcode, instruction.shape
        if opcode in COLLECTIVES:
            return opcode, shape
        # Of a pair of start and done, the done has the results alone.
        if opcode.endswith("-done") and opcode.removesuffix("-done") in COLLECTIVES:
            return opcode.removesuffix("-done"), shape
        # What goes to other slices is sent through the hosts' network; a receive is another's send.
        if opcode == "send":
            return opcode, max((match[0] for match in _ARRAY.finditer(shape)), key=array_bytes)
        if opcode != "fusion":
            return None
        # A large reduce-scatter is written as a fusion around an all-reduce.
        if "all-reduce-scatter" in instruction.name + instruction.named("calls"):
            return "reduce-scatter", shape
        # One that other work overlaps with is written as three or more fusions, each of which repeats it.
        inside = self._computations.get(instruction.named("calls"), {}).values()
        if any('custom_call_target="AsyncCollectiveStart"' in each.rest for each in inside):
            return next(((each.opcode, each.shape) for each in inside if each.opcode in COLLECTIVES), None)
        return None

    def _turns(self, loop: Instruction, around: dict[str, Instruction]) -> int:
        """How often a counted loop turns: from the constants that its condition compares and its body adds."""
        turns = self._counted(loop, around)
        if turns is None:
            self.unknown_loops.add(loop.name)
        return 1 if turns is None else turns

    def _counted(self, loop: Instruction, around: dict[str, Instruction]) -> int | None:
        condition = self._computations.get(loop.named("condition"), {})
        body = self._computations.get(loop.named("body"), {})
        start = around.get(loop.operands()[0]) if loop.operands() else None
        compare = next((i for i in condition.values() if i.opcode == "compare"), None)
        if compare is None or "direction=LT" not in compare.rest or start is None or start.opcode != "tuple":
            return None
        first, last = (self._bound(name, condition, around, start) for name in compare.operands())
        counter = condition.get(compare.operands()[0])
        if first is None or last is None or counter is None or counter.opcode != "get-tuple-element":
            return None
        step = _added(body, counter.index())
        return None if not step or step < 0 else max(0, -(-(last - first) // step))

    def _bound(
        self, name: str, condition: dict[str, Instruction], around: dict[str, Instruction], start: Instruction
    ) -> int | None:
        """What a side of the condition's comparison is before the loop: a constant there, or one from outside."""
        instruction = condition.get(name)
        if instruction is not None and instruction.opcode == "get-tuple-element":
            return _constant(around, start.operands()[instruction.index()])
        return _constant(condition, name)


def _added(body: dict[str, Instruction], index: int) -> int | None:
    """What a loop's body adds to the counter at a place of its tuple."""
    root = next((i for i in reversed(body.values()) if i.opcode == "tuple"), None)
    add = body.get(root.operands()[index]) if root else None
    if add is None or add.opcode != "add":
        return None
    return next((found for name in add.operands() if (found := _constant(body, name)) is not None), None)


def _constant(computation: dict[str, Instruction], name: str) -> int | None:
    """A scalar's value, through the copies the compiler makes of it."""
    instruction = computation.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        instruction = computation.get(instruction.operands()[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    found = re.match(r"(-?\d+)\)", instruction.rest)
    return int(found[1]) if found else None


def entries(array: str) -> int:
    """How many entries an array type such as bf16[128,512] has."""
    found = _ARRAY.search(array)
    return math.prod(int(size) for size in found[2].split(",") if size) if found else 0


def array_bytes(shape: str) -> float:
    """Bytes of an array type, or of all arrays of a tuple type."""
    return sum(_BYTES.get(match[1], 0) * entries(match[0]) for match in _ARRAY.finditer(shape))
