"""python -m jaxclip.plan, but for the TPU's compiler: reading programs, searching, counting, and wrong options."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys

import jax
import pytest
from commands import ROOT, environment

from jaxclip import mesh as meshes
from jaxclip import methods, optimizer
from jaxclip.config import Config, MeshConfig, OptimizerConfig, parse
from jaxclip.errors import UserError
from jaxclip.plan import chips, table
from jaxclip.plan.compiling import Plan, remat_of, with_remat
from jaxclip.plan.flops import model_flops
from jaxclip.plan.hlo import Program, array_bytes
from jaxclip.plan.search import search
from jaxclip.step import Step

# As the TPU's compiler writes it: a loop of 12 turns around one of 3, whose bound comes in from outside.
PROGRAM = """
HloModule jit_f, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %inside = f32[8]{0} negate(%p), backend_config={"window_config":{"estimated_cycles":"1000000"}}
}

%inner_body (q: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {
  %q = (s32[]{:T(128)}, f32[8]{0}, s32[]{:T(128)}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%q), index=1
  %permute = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=1
  %arrived = f32[8]{0} collective-permute-done(%permute)
  ROOT %t = (s32[]{:T(128)}, f32[8]{0}, s32[]{:T(128)}) tuple(%x)
}

%inner_condition (r: (s32[], f32[8], s32[])) -> pred[] {
  %r = (s32[]{:T(128)}, f32[8]{0}, s32[]{:T(128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%r), index=0
  %bound = s32[]{:T(128)} get-tuple-element(%r), index=2
  ROOT %lt = pred[]{:T(512)} compare(%j, %bound), direction=LT
}

%body (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %b = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %y = f32[8]{0} fusion(%b), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"50"}}
  %zero = s32[]{:T(128)} constant(0)
  %three = s32[]{:T(128)} constant(3)
  %copied = s32[]{:T(128)} copy(%three)
  %start = (s32[]{:T(128)}, f32[8]{0}, /*index=2*/s32[]{:T(128)}) tuple(%zero, %y, /*index=2*/%copied)
  %inner = (s32[]{:T(128)}, f32[8]{0}, s32[]{:T(128)}) while(%start), condition=%inner_condition, body=%inner_body
  ROOT %u = (s32[]{:T(128)}, f32[8]{0}) tuple(%zero, %y)
}

%condition (c: (s32[], f32[8])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %twelve = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i, %twelve), direction=LT
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %none = s32[]{:T(128)} constant(0)
  %first = (s32[]{:T(128)}, f32[8]{0}) tuple(%none, %a)
  %loop = (s32[]{:T(128)}, f32[8]{0}) while(%first), condition=%condition, body=%body
  %z = f32[8]{0} get-tuple-element(%loop), index=1
  %sums = (f32[8]{0}, bf16[2,3]{1,0}) all-reduce(%z, %z), channel_id=2
  %part = f32[1]{0} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %w = f32[8]{0} add(%z, %z), backend_config={"window_config":{"estimated_cycles":"7"}}
}
"""


def test_loops_multiply_cycles_and_collectives():
    program = Program(PROGRAM)
    assert program.cycles() == 12 * 50 + 7
    found = {item.kind: (item.times, item.bytes) for item in program.collectives()}
    assert found == {"collective-permute": (36, 32), "all-reduce": (1, 32 + 12), "reduce-scatter": (1, 4)}
    assert not program.unknown_loops


def test_a_loop_whose_length_cannot_be_read_counts_once_and_is_reported():
    program = Program(PROGRAM.replace("direction=LT", "direction=NE"))
    assert program.cycles() == 50 + 7
    assert program.unknown_loops == {"loop", "inner"}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("f32[]{:T(128)}", 4), ("bf16[128,197,768]{2,1,0:T(8,128)(2,1)S(1)}", 128 * 197 * 768 * 2), ("pred[7]", 7),
     ("(s32[], /*index=1*/u8[4,4]{1,0})", 4 + 16), ("token[]", 0)],
)  # fmt: skip
def test_bytes_of_a_shape(shape, expected):
    assert array_bytes(shape) == expected


SIZES = {"width": 64, "layers": 3, "heads": 2}
METHOD = {
    "name": "clip",
    "embed_dim": 32,
    "image": {"image_size": 32, "patch_size": 8, "scan": True} | SIZES,
    "text": {"vocab_size": 100, "context_length": 10, "scan": False} | SIZES,
}
CONFIG = parse(
    Config,
    {
        "seed": 0,
        "steps": 1,
        "batch_size": 1024,
        "data": {"train": "shapes", "train_vocabulary": 300},
        "method": METHOD,
        "optimizer": {"learning_rate": 1e-3},
    },
)


def test_a_models_operations_are_those_of_its_formula():
    """24 tokens width^2 + 4 tokens^2 width per block, patches and projections: forward; three times that in all."""
    method = methods.from_config(METHOD)
    mesh = meshes.create(MeshConfig(), jax.devices()[:1])
    step = Step(method, optimizer.create(OptimizerConfig(1e-3), 10), mesh)
    batch, width = 16, 64

    def blocks(tokens: int) -> int:
        return 3 * (24 * tokens * width**2 + 4 * tokens**2 * width)

    image = blocks(17) + 2 * 16 * (8 * 8 * 3) * width + 2 * width * 32
    text = blocks(10) + 2 * width * 32
    assert model_flops(step, method.example_batch(batch)) == 3 * batch * (image + text)


def test_remat_is_said_and_set_for_all_towers():
    assert remat_of(CONFIG) == "none"
    full = with_remat(CONFIG, "full")
    assert remat_of(full) == "full"
    assert methods.from_config(full.method).image.remat == methods.from_config(full.method).text.remat == "full"


def plan(config: Config, fits: bool, peak: int, remat: str) -> Plan:
    parts = {"parameters": 1000, "optimizer state": 2000, "batch": 0, "temporaries": peak - 3000}
    return Plan(fits, config.batch_size, remat, parts, peak, {}, 100, 0, 1e6, 1.0)


def memory(per_row: dict[str, int], hbm: int, compiled: list[tuple[str, int]]):
    """A compiler whose programs need 3,000 bytes and so many per row, and a little more than in proportion."""

    def compile_one(config: Config) -> Plan:
        rows, remat = config.batch_size // 4, remat_of(config)
        peak = 3000 + per_row[remat] * rows + rows**2 // 1000
        compiled.append((remat, rows))
        return plan(config, peak <= hbm, peak, remat)

    return compile_one


@pytest.mark.parametrize("hbm", [10_000, 50_000, 1_000_000])
def test_a_search_finds_the_largest_batch_and_the_cheapest_rematerialisation(hbm):
    config = with_remat(dataclasses.replace(CONFIG, batch_size=4 * 256), "none")
    per_row, compiled = {"none": 300, "dots": 100, "full": 20}, []
    found = search(config, 4, hbm, memory(per_row, hbm, compiled))
    expected = next((remat for remat, each in per_row.items() if 3000 + each * 256 + 65 <= hbm), None)
    assert (found.cheapest and found.cheapest.remat) == expected
    for remat, each in per_row.items():
        rows = found.largest[remat].batch_size // 4
        assert rows % 8 == 0
        more = rows + max(8, rows // 16 // 8 * 8)
        assert 3000 + each * rows + rows**2 // 1000 <= hbm < 3000 + each * more + more**2 // 1000
    assert len(compiled) == len(set(compiled)) <= 21


def test_a_search_leaves_out_what_does_not_fit_with_the_smallest_batch():
    found = search(CONFIG, 4, 3500, memory({"none": 3000, "dots": 3000, "full": 20}, 3500, []))
    assert found.cheapest is None and list(found.largest) == ["full"]


def test_what_does_not_fit_is_told_by_how_much_and_what_helps():
    topology = chips.Topology("v5e:2x2", chips.CHIPS["v5e"], 1, [None] * 4)
    text = table.table(dataclasses.replace(plan(CONFIG, False, 20 * 2**30, "none"), estimated_cycles=None), topology)
    assert "no: needs at least 20.00 GiB per device, 4.25 GiB more than 15.75 GiB" in text
    assert "remat='full'" in text and "config.microbatches=2" in text


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("v9:4x4", {}, "--topology=v9:4x4: give a generation (v4, v5e, v5p, v6e, tpu7x)"),
        ("v5e", {}, "--topology=v5e: give a generation"),
        ("v5e:16", {}, "such as v5e:16x16"),
        ("v5e:4x4", {"slices": 0}, "--slices=0 must be at least 1"),
        ("v5e:4x4", {"megacore": False}, "--nomegacore: only a v4 chip"),
    ],
)
def test_a_wrong_topology_is_one_line(name, options, said):
    with pytest.raises(UserError, match=re.escape(said)):
        chips.topology(name, **options)


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu, the TPU's compiler, is not installed: pip install 'jaxclip\[plan\]'"):
        chips.topology("v5e:4x4")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=configs/quickstart.py"], "give the TPUs to plan for, such as --topology=v5e:16x16"),
        (["--config=configs/none.py", "--topology=v5e:2x2"], "there is no file configs/none.py"),
        (
            ["--config=configs/vit_b16.py", "--topology=v5e:2x2", "--config.batchsize=8"],
            "did you mean config.batch_size",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(arguments, said):
    done = subprocess.run(
        [sys.executable, "-m", "jaxclip.plan", *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and said in done.stderr and done.stderr.count("\n") == 1
