"""What the cycles of a compiled step are spent on."""

from __future__ import annotations

import re

from jaxclip.plan.hlo import Instruction, Program

KINDS = ("products", "attention", "copies", "reductions", "elementwise", "optimizer")

_PRODUCTS = {"dot", "convolution"}
_REDUCTIONS = {"reduce", "reduce-window", "sort"}
# What moves values, or makes them from nothing.
_COPIES = {"copy", "copy-start", "copy-done", "transpose", "reshape", "bitcast", "slice", "dynamic-slice", "pad"}
_COPIES |= {"dynamic-update-slice", "concatenate", "broadcast", "iota", "constant", "parameter", "tuple", "gather"}
_COPIES |= {"get-tuple-element", "convert", "reverse", "scatter", "async-start", "async-done", "custom-call"}


def by_kind(program: Program, kernel_cycles: int) -> dict[str, int]:
    """The estimated cycles by kind, the largest first; kinds without any are left out.

    "attention" is everything between the projections of a tower's tokens, kernels included, whatever else it may be;
    "optimizer" likewise. Of the rest, "products" are fusions with a matrix product or a convolution, whatever else is
    fused into them, "reductions" those with sums, "copies" those that only move or convert values.

    Args:
      program: of a step.
      kernel_cycles: of all kernels, which are attention's.
    """
    found = dict.fromkeys(KINDS, 0)
    found["attention"] += kernel_cycles
    for instruction, times in program.run():
        if cycles := instruction.cycles():
            found[kind(program, instruction)] += times * cycles
    return {name: cycles for name, cycles in sorted(found.items(), key=lambda item: -item[1]) if cycles}


def kind(program: Program, instruction: Instruction) -> str:
    """One of `KINDS`."""
    inside = program.inside(instruction)
    opcodes = {each.opcode for each in inside}
    products = [each for each in inside if each.opcode in _PRODUCTS]
    # A fusion has the scope of one of its parts; if it has products, theirs says more.
    scopes = [each.scope() for each in products] or [instruction.scope()]
    for name in ("attention", "optimizer"):
        # As a scope of its own: in jvp(attention)/, but not in attention_out.
        if any(re.search(rf"\b{name}\b", scope) for scope in scopes):
            return name
    if products:
        return "products"
    if opcodes & _REDUCTIONS:
        return "reductions"
    return "copies" if opcodes <= _COPIES else "elementwise"
