"""python -m jaxclip.plan without the TPU's compiler: program parsing, search, counts and invalid options."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from commands import ROOT, environment

from jaxclip import methods, optimizer, sharding
from jaxclip.config import Config, GroupConfig, MeshConfig, OptimizerConfig
from jaxclip.errors import UserError
from jaxclip.inputs import shapes
from jaxclip.methods import clip
from jaxclip.parsing import parse
from jaxclip.plan import chips, table
from jaxclip.plan.compiling import Plan, Traffic, remat_of, stored_bytes, with_remat
from jaxclip.plan.flops import model_flops
from jaxclip.plan.hlo import Program, array_bytes
from jaxclip.plan.search import search
from jaxclip.step import Step
from jaxclip.towers.momentum import Queue

# As the TPU's compiler writes it: a loop of 12 turns around one of 3 (0, 2, 4), whose bound comes in from outside.
PROGRAM = """
HloModule jit_f, is_scheduled=true

%gather (g: bf16[1,32]) -> (bf16[1,32], bf16[1,128], u32[]) {
  %g = bf16[1,32]{1,0} parameter(0)
  %gathered = bf16[1,128]{1,0} all-gather(%g), channel_id=3, dimensions={1}
  ROOT %begun = (bf16[1,32], bf16[1,128], u32[]) custom-call(%gathered), custom_call_target="AsyncCollectiveStart"
}

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %inside = f32[8]{0} negate(%p), backend_config={"window_config":{"estimated_cycles":"1000000"}}
}

%inner_body (q: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {
  %q = (s32[]{:T(128)}, f32[8]{0}, s32[]{:T(128)}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%q), index=1
  %permute = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=1
  %arrived = f32[8]{0} collective-permute-done(%permute)
  %j2 = s32[]{:T(128)} get-tuple-element(%q), index=0
  %bound2 = s32[]{:T(128)} get-tuple-element(%q), index=2
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%j2, %two)
  ROOT %t = (s32[]{:T(128)}, f32[8]{0}, /*index=2*/s32[]{:T(128)}) tuple(%next, %x, /*index=2*/%bound2)
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
  %six = s32[]{:T(128)} constant(6)
  %copied = s32[]{:T(128)} copy(%six)
  %start = (s32[]{:T(128)}, f32[8]{0}, /*index=2*/s32[]{:T(128)}) tuple(%zero, %y, /*index=2*/%copied)
  %inner = (s32[]{:T(128)}, f32[8]{0}, s32[]{:T(128)}) while(%start), condition=%inner_condition, body=%inner_body
  %i2 = s32[]{:T(128)} get-tuple-element(%b), index=0
  %one = s32[]{:T(128)} constant(1)
  %more = s32[]{:T(128)} add(%i2, %one)
  ROOT %u = (s32[]{:T(128)}, f32[8]{0}) tuple(%more, %y)
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
  %async-collective-start = (bf16[1,32], bf16[1,128], u32[]) fusion(%a), kind=kCustom, calls=%gather
  %begin = ((f32[4], bf16[2]), (f32[8], bf16[4]), u32[]) all-gather-start(%z, %z), channel_id=4
  %end = (f32[8], bf16[4]) all-gather-done(%begin)
  %part = f32[1]{0} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %w = f32[8]{0} add(%z, %z), backend_config={"window_config":{"estimated_cycles":"7"}}
}
"""


def test_loops_multiply_cycles_and_collectives():
    program = Program(PROGRAM)
    assert program.cycles() == 12 * 50 + 7
    found = {(item.kind, item.times, item.bytes) for item in program.collectives()}
    permute, sums, scatter = ("collective-permute", 36, 32), ("all-reduce", 1, 32 + 12), ("reduce-scatter", 1, 4)
    overlapped, combined = ("all-gather", 1, 256), ("all-gather", 1, 32 + 8)
    assert found == {permute, sums, scatter, overlapped, combined}
    assert not program.unknown_loops


def test_a_loop_whose_length_cannot_be_read_counts_once_and_is_reported():
    for known, unknown in (("direction=LT", "direction=NE"), ("%none, %a", "%a, %a"), (" add(%i2,", " multiply(%i2,")):
        program = Program(PROGRAM.replace(known, unknown))
        assert program.cycles() == 50 + 7
        assert "loop" in program.unknown_loops


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
    """24 tokens width^2 + 4 tokens^2 width per block, and the projections: forward, and twice that backward.

    The patches, among which the class token has a row, have no gradient; the loss is one product of all embeddings,
    three for its gradient.
    """
    method = methods.from_config(METHOD)
    mesh = sharding.create(MeshConfig(), jax.devices()[:1])
    step = Step(method, optimizer.create(OptimizerConfig(1e-3), 10), mesh)
    batch, width = 16, 64

    def blocks(tokens: int) -> int:
        return 3 * (24 * tokens * width**2 + 4 * tokens**2 * width)

    patches = 2 * 17 * (8 * 8 * 3) * width
    towers = blocks(17) + blocks(10) + 2 * (2 * width * 32)
    loss = 4 * 2 * batch**2 * 32
    assert model_flops(method, step, shapes(method.inputs(), batch)) == batch * (3 * towers + 2 * patches) + loss


def test_a_frozen_tower_has_no_backward_pass():
    method = methods.from_config(METHOD)
    mesh = sharding.create(MeshConfig(), jax.devices()[:1])
    groups = (GroupConfig("^image", rate=0.0),)
    frozen = Step(method, optimizer.create(OptimizerConfig(1e-3, groups=groups), 10), mesh, groups=groups)
    trained = Step(method, optimizer.create(OptimizerConfig(1e-3), 10), mesh)
    batch = shapes(method.inputs(), 16)
    tower = 16 * (3 * (24 * 17 * 64**2 + 4 * 17**2 * 64) + 2 * 64 * 32)
    saved = model_flops(method, trained, batch) - model_flops(method, frozen, batch)
    assert saved == 2 * tower + 16 * 2 * 17 * (8 * 8 * 3) * 64


def test_remat_is_shown_and_set_for_all_towers():
    assert remat_of(CONFIG) == "none"
    full = with_remat(CONFIG, "full")
    assert remat_of(full) == "full"
    assert methods.from_config(full.method).image.remat == methods.from_config(full.method).text.remat == "full"


TOPOLOGY = chips.Topology("v5e:2x4", chips.CHIPS["v5e"], 1, [None] * 8)


@dataclasses.dataclass(frozen=True)
class Queued(clip.Method):
    """CLIP with a queue as MoCo's."""

    def memory(self, model, rngs):
        return Queue(65_536, 256, rngs=rngs)


def test_a_queue_and_an_average_are_shown_with_their_bytes():
    known = methods.from_config(METHOD)
    method = Queued(known.image, known.text, known.embed_dim)
    mesh = sharding.create(MeshConfig(fsdp=4), jax.devices()[:8])
    step = Step(method, optimizer.create(OptimizerConfig(1e-3), 10), mesh, average_decay=0.99)
    rows = jax.ShapeDtypeStruct((64, 32, 32, 3), np.uint8, sharding=sharding.batch_sharding(mesh))
    parts = stored_bytes(step.abstract_state, rows)
    # An eighth of the queue, which is over all devices, and where the next batch goes.
    assert parts["memory"] == 65_536 * 256 * 4 // 8 + 4
    assert parts["averaged parameters"] == parts["parameters"] > 0
    text = table.table(dataclasses.replace(plan(CONFIG, True, 2**30, "none"), parts=parts), TOPOLOGY)
    assert re.search(r"  8\.0 MiB  memory$", text, re.MULTILINE), text
    assert "memory" not in stored_bytes(Step(known, step.optimizer, mesh).abstract_state, rows)


def plan(config: Config, fits: bool, peak: int, remat: str) -> Plan:
    parts = {"parameters": 1000, "optimizer state": 2000, "batch": 0, "temporaries": peak - 3000}
    kinds = {"products": 70, "attention": 30}
    mesh = {"data": 4, "fsdp": 1}
    return Plan(fits, config.batch_size, remat, 1, mesh, parts, peak, {}, 100, 30, kinds, 0, 1e6, 1.0)


def layers_of(config: Config) -> tuple[int, int]:
    return config.method["image"]["layers"], config.method["text"]["layers"]


def compiler(per_layer: dict[str, int], hbm: int, compiled: list[tuple[str, tuple[int, int]]]):
    """A compiler whose programs need 3,000 bytes, so many per row and layer of the image tower, and half for texts."""

    def compile_one(config: Config) -> Plan:
        rows, remat, (image, text) = config.batch_size // 4, remat_of(config), layers_of(config)
        peak = 3000 + rows * per_layer[remat] * (2 * image + text) // 2
        compiled.append((remat, (image, text)))
        found = plan(config, peak <= hbm, peak, remat)
        cycles = 1000 + 100 * image + 10 * text
        return dataclasses.replace(
            found,
            estimated_cycles=cycles,
            cycles_by_kind={"products": cycles},
            collectives={"all-reduce": Traffic(2, cycles)},
        )

    return compile_one


DEEP = dataclasses.replace(
    CONFIG, method=METHOD | {"image": METHOD["image"] | {"layers": 24}, "text": METHOD["text"] | {"layers": 12}}
)
PER_LAYER = {"none": 30, "dots": 15, "full": 2}


@pytest.mark.parametrize("hbm", [10_000, 20_000, 150_000, 1_000_000])
def test_a_search_judges_by_few_layers_and_compiles_the_cheapest_that_fits_whole(hbm):
    compiled = []
    config = with_remat(DEEP, "none")
    found = search(config, 4, hbm, compiler(PER_LAYER, hbm, compiled))
    whole = {remat: 3000 + 256 * each * 30 for remat, each in PER_LAYER.items()}
    expected = next((remat for remat, peak in whole.items() if peak <= hbm), None)
    assert (found.cheapest and found.cheapest.remat) == expected
    assert {remat: each.peak_hbm_bytes for remat, each in found.estimates.items()} == whole
    for remat, each in found.estimates.items():
        assert each.estimated_cycles == each.cycles_by_kind["products"] == 1000 + 24 * 100 + 12 * 10
        assert each.collectives["all-reduce"] == Traffic(2, each.estimated_cycles)
        rows = found.largest[remat] // 4
        assert rows % 8 == 0 and 3000 + rows * PER_LAYER[remat] * 30 <= hbm < 3000 + (rows + 8) * PER_LAYER[remat] * 30
    small = [(remat, layers) for remat in PER_LAYER for layers in ((2, 2), (3, 2), (2, 3))]
    assert compiled == small + ([(expected, (24, 12))] if expected else [])


def test_a_search_that_finds_too_little_memory_in_the_whole_model_goes_on():
    compiled = []
    few = compiler(PER_LAYER, 1_000_000, compiled)

    def compile_one(config: Config) -> Plan:
        found = few(config)
        return dataclasses.replace(found, fits=layers_of(config) != (24, 12) or found.remat == "full")

    assert search(with_remat(DEEP, "none"), 4, 1_000_000, compile_one).cheapest.remat == "full"
    assert [remat for remat, layers in compiled if layers == (24, 12)] == ["none", "dots", "full"]


def test_towers_of_few_layers_are_compiled_as_they_are():
    compiled = []
    search(with_remat(CONFIG, "none"), 4, 10**6, compiler(PER_LAYER, 10**6, compiled))
    assert {layers for _, layers in compiled} == {(3, 3)}


def test_a_step_that_does_not_fit_is_reported_with_the_excess_and_advice():
    topology = chips.Topology("v5e:2x2", chips.CHIPS["v5e"], 1, [None] * 4)
    large = dataclasses.replace(plan(CONFIG, False, 20 * 2**30, "none"), estimated_cycles=None)
    text = table.table(large, topology)
    assert "no: needs at least 20.00 GiB per device, 4.25 GiB more than 15.75 GiB" in text
    assert table.advice(large).startswith("remat='full' in config.method.image and .text; config.microbatches=2;")


def test_advice_is_what_can_be_followed():
    parts = {"parameters": 10**10, "optimizer state": 10**10, "batch": 0, "temporaries": 0}
    large = dataclasses.replace(plan(CONFIG, False, 2 * 10**10, "full"), parts=parts, batch_size=9, microbatches=3)
    one = dataclasses.replace(large, mesh={"data": 1, "fsdp": 1})
    assert table.advice(one) == "config.microbatches=9; --search finds what fits"
    many = dataclasses.replace(large, batch_size=12, mesh={"data": 2, "fsdp": 2})
    assert table.advice(many).startswith("config.mesh.fsdp=4 or more (")
    least = dataclasses.replace(one, batch_size=3)
    assert table.advice(least).startswith("more devices;")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("v9:4x4", {}, "--topology=v9:4x4: give a generation (v4, v5e, v5p, v6e, tpu7x)"),
        ("v5e", {}, "--topology=v5e: give a generation"),
        ("v5e:16", {}, "such as v5e:16x16"),
        ("v5e:4x4x4", {}, "two dimensions for v5e and v6e"),
        ("v5p:4x4", {}, "three for the others"),
        ("v6e:0x4", {}, "such as v5e:16x16"),
        ("v5e:4x4", {"slices": 0}, "--slices=0 must be at least 1"),
        ("v5e:4x4", {"megacore": False}, "--nomegacore: only for v4"),
    ],
)
def test_a_wrong_topology_is_one_line(name, options, said):
    with pytest.raises(UserError, match=re.escape(said)):
        chips.topology(name, **options)


def test_without_libtpu_a_one_line_error_names_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu, the TPU's compiler, is not installed: pip install -e '.\[plan\]'"):
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
