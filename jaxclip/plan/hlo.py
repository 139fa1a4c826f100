"""Parser of programs compiled for TPUs: loops, collectives and estimated cycles."""

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

    def cycles(self) -> int:
        """The compiler's estimate; 0 if it has none."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(match[1]) if match else 0

    def scope(self) -> str:
        """The names of the functions and scopes that it comes from, or ""."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""

    def index(self) -> int:
        """The tuple index of a get-tuple-element."""
        match = re.search(r"index=(\d+)", self.rest)
        return int(match[1]) if match else 0

    def named(self, attribute: str) -> str:
        """The name of the computation in an attribute such as `body`, or ""."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective (`send` goes to other slices) with the bytes of its result per device and its count per step."""

    kind: str
    bytes: float
    times: int
    shape: str


class Program:
    """A parsed program.

    Attributes:
      unknown_loops: names of loops whose number of iterations is unknown; they count once.
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
            elif match := _INSTRUCTION.match(line):
                current[match[1]] = Instruction(*match.groups())

    def run(self) -> Iterator[tuple[Instruction, int]]:
        """The instructions of a step with their numbers of executions. A fusion is one instruction.

        All branches of a conditional are counted, because it is not known which one is taken.
        """
        yield from self._run(self._entry, 1)

    def collectives(self) -> list[Collective]:
        """All collectives of a step; a start and its done count as one."""
        collectives = []
        for instruction, times in self.run():
            collective = self._collective(instruction)
            if collective:
                kind, shape = collective
                collectives.append(Collective(kind, array_bytes(shape), times, shape))
        return collectives

    def cycles(self) -> int:
        """The compiler's estimate for everything except communication and kernels, with loops multiplied out."""
        return sum(times * instruction.cycles() for instruction, times in self.run())

    def kernels(self) -> list[tuple[Instruction, int]]:
        """The calls of kernels, of which the compiler has no estimate, with their numbers of executions."""
        return [(one, times) for one, times in self.run() if 'custom_call_target="tpu_custom_call"' in one.rest]

    def inside(self, instruction: Instruction) -> list[Instruction]:
        """The instructions that a fusion consists of; the instruction alone if it is none."""
        if instruction.opcode != "fusion":
            return [instruction]
        found = []
        for each in self._computations.get(instruction.named("calls"), {}).values():
            found += self.inside(each)
        return found

    def shapes(self) -> set[str]:
        """The array types of all values of the program, such as bf16[128,512], including those inside fusions."""
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
                iterations = self._iterations(instruction, computation)
                yield from self._run(instruction.named("body"), times * iterations)
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for group in _CALLED.findall(instruction.rest):
                    for called in re.findall(r"%([\w.\-]+)", group):
                        yield from self._run(called, times)

    def _collective(self, instruction: Instruction) -> tuple[str, str] | None:
        """The kind of a collective and the shape of its result; None for other instructions."""
        opcode, shape = instruction.opcode, instruction.shape
        if opcode in COLLECTIVES:
            return opcode, shape
        # In a pair of start and done, only the done has the shape of the result alone.
        if opcode.endswith("-done") and opcode.removesuffix("-done") in COLLECTIVES:
            return opcode.removesuffix("-done"), shape
        # Data for other slices is sent through the hosts' network; a receive is the send of another device.
        if opcode == "send":
            return opcode, max((match[0] for match in _ARRAY.finditer(shape)), key=array_bytes)
        if opcode != "fusion":
            return None
        # A large reduce-scatter is compiled to a fusion around an all-reduce.
        if "all-reduce-scatter" in instruction.name + instruction.named("calls"):
            return "reduce-scatter", shape
        # A collective that overlaps with other work is compiled to three or more fusions, each of which repeats it.
        inside = self._computations.get(instruction.named("calls"), {}).values()
        if any('custom_call_target="AsyncCollectiveStart"' in each.rest for each in inside):
            return next(((each.opcode, each.shape) for each in inside if each.opcode in COLLECTIVES), None)
        return None

    def _iterations(self, loop: Instruction, around: dict[str, Instruction]) -> int:
        """A loop's number of iterations, from the constants that its condition compares and its body adds."""
        iterations = self._counted(loop, around)
        if iterations is None:
            self.unknown_loops.add(loop.name)
        return 1 if iterations is None else iterations

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
        """The initial value of an operand of the condition's comparison: a constant inside or outside the loop."""
        instruction = condition.get(name)
        if instruction is not None and instruction.opcode == "get-tuple-element":
            return _constant(around, start.operands()[instruction.index()])
        return _constant(condition, name)


def _added(body: dict[str, Instruction], index: int) -> int | None:
    """The constant that a loop's body adds to the counter at an index of its tuple."""
    root = next((i for i in reversed(body.values()) if i.opcode == "tuple"), None)
    add = body.get(root.operands()[index]) if root else None
    if add is None or add.opcode != "add":
        return None
    return next((value for name in add.operands() if (value := _constant(body, name)) is not None), None)


def _constant(computation: dict[str, Instruction], name: str) -> int | None:
    """The value of a scalar constant, through the compiler's copies of it."""
    instruction = computation.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        instruction = computation.get(instruction.operands()[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    match = re.match(r"(-?\d+)\)", instruction.rest)
    return int(match[1]) if match else None


def entries(array: str) -> int:
    """The number of entries of an array type such as bf16[128,512]."""
    match = _ARRAY.search(array)
    return math.prod(int(size) for size in match[2].split(",") if size) if match else 0


def array_bytes(shape: str) -> float:
    """Bytes of an array type, or of all arrays of a tuple type."""
    return sum(_BYTES.get(match[1], 0) * entries(match[0]) for match in _ARRAY.finditer(shape))
