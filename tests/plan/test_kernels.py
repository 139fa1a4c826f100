"""Cycles of kernels and what cycles are spent on, without the TPU's compiler."""

from __future__ import annotations

import re

import pytest

from jaxclip.errors import UserError
from jaxclip.plan import kernels
from jaxclip.plan.chips import CHIPS
from jaxclip.plan.hlo import Program
from jaxclip.plan.kinds import by_kind

CALL = (
    '%{name} = bf16[128,200,768]{{2,1,0}} custom-call(%qkv), custom_call_target="tpu_custom_call", '
    "operand_layout_constraints={{bf16[128,200,2304]{{2,1,0}}}}, "
    'metadata={{op_name="jit(step)/{scope}/pallas_call"}}'
)

PROGRAM = f"""
%product (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  %moved = f32[8]{{0}} transpose(%p)
  ROOT %dot = f32[8]{{0}} convolution(%moved, %p), metadata={{op_name="jit(step)/jvp()/dot_general"}}
}}

%scored (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %logits = f32[8]{{0}} convolution(%p, %p), metadata={{op_name="jit(step)/jvp(attention)/dot_general"}}
}}

%summed (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  %more = f32[8]{{0}} add(%p, %p)
  ROOT %sum = f32[8]{{0}} reduce(%more, %p)
}}

%moved_only (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %turned = f32[8]{{0}} transpose(%p)
}}

%added (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %one_more = f32[8]{{0}} add(%p, %p)
}}

ENTRY %main (q: f32[8]) -> f32[8] {{
  %q = f32[8]{{0}} parameter(0)
  %a = f32[8]{{0}} fusion(%q), kind=kOutput, calls=%product, backend_config={{"estimated_cycles":"1000"}}
  %out = f32[8]{{0}} fusion(%q), kind=kOutput, calls=%product, metadata={{op_name="jvp()/attention_out"}}, \
backend_config={{"estimated_cycles":"1"}}
  %b = f32[8]{{0}} fusion(%a), kind=kOutput, calls=%scored, backend_config={{"estimated_cycles":"200"}}
  %c = f32[8]{{0}} fusion(%b), kind=kLoop, calls=%summed, backend_config={{"estimated_cycles":"30"}}
  %d = f32[8]{{0}} fusion(%b), kind=kLoop, calls=%moved_only, backend_config={{"estimated_cycles":"4"}}
  %e = f32[8]{{0}} fusion(%b), kind=kLoop, calls=%added, backend_config={{"estimated_cycles":"50"}}
  %f = f32[8]{{0}} fusion(%b), kind=kLoop, calls=%added, metadata={{op_name="jit(step)/optimizer/add"}}, \
backend_config={{"estimated_cycles":"600"}}
  {CALL.format(name="first", scope="jvp(attention_forward_197x12)")}
  ROOT {CALL.format(name="second", scope="transpose(jvp(attention_backward_197x12_causal_masked))")}
}}
"""

SCHEDULE = """
     0   :  { %1 = vsyncpa [#allocation3], 0  ;;  %s2 = inlined_call_operand.hbm [shape: bf16[2,584,3072]] }
   0x1   :  { %8 = vsyncpa [#allocation3 + $0x1], 0 }
   0x2 LB: > { %s10 = sadd.s32 4294967295, %s9 /* iteration index, stage = 1 */
base_bounds: (2, 73, 24)
element_size_in_bytes: 2048 */ }
   0x3   : > { %s18 = ssub.s32 %s23, %s11 }
   0x4   : >> { %v13738 = vld [vmem:[%s24 + $0x540] sm:$0xf] }
   0x5   : >> { %v13739 = vld [vmem:[%s24 + $0x550] sm:$0xf] }
   0x6 PF: > { %p11 = scmp.ge.s32.totalorder %s64, 4 /* loop exit test */ }
   0x7   :  { %9 = vsyncpa [#allocation3], 1 }
"""


def test_cycles_are_of_the_kinds_of_what_they_are_spent_on():
    """A product in a fusion makes it one; the projection behind attention is no attention."""
    found = by_kind(Program(PROGRAM), 7)
    assert found == {
        "products": 1001,
        "optimizer": 600,
        "attention": 207,
        "elementwise": 50,
        "reductions": 30,
        "copies": 4,
    }


def test_a_call_costs_what_its_rows_cost(monkeypatch):
    asked = []

    def per_row(kernel, chip):
        asked.append((kernel, chip.name))
        return {"forward": 10, "backward": 25}

    monkeypatch.setattr(kernels, "cycles_per_row", per_row)
    calls = Program(PROGRAM).kernels()
    assert [(kernels.cycles(call, CHIPS["v5e"]), times) for call, times in calls] == [(1280, 1), (3200, 1)]
    # The two cores of a v5p share the rows.
    assert kernels.cycles(calls[0][0], CHIPS["v5p"]) == 640
    plain = kernels.Kernel(tokens=200, keys=197, heads=12, causal=False, masked=False, dtype="bf16")
    assert asked[0] == (plain, "v5e")
    assert (asked[1][0].causal, asked[1][0].masked) == (True, True)


def test_a_kernel_of_unknown_cost_is_refused():
    program = Program(PROGRAM.replace("attention_forward", "another"))
    with pytest.raises(UserError, match=re.escape("the program has a kernel whose cycles are unknown: first bf16[128")):
        kernels.cycles(program.kernels()[0][0], CHIPS["v5e"])


def test_the_bundles_of_a_loop_over_heads_count_as_often_as_it_turns():
    """Those before and after the loop over rows are no row's."""
    assert kernels._bundles(SCHEDULE, turns=8) == 3 + 8 * 2
    with pytest.raises(UserError, match="loops of depth 2"):
        kernels._bundles(SCHEDULE, turns=1)
