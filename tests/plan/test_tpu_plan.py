"""python -m jaxclip.plan with the TPU's compiler: small models on real topologies."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import pytest
from commands import ROOT, environment, recipe

from jaxclip.plan.chips import topology

pytestmark = pytest.mark.tpu_compile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("plan")
    recipe(folder)
    # Its data need not be there to plan for it.
    (folder / "pairs.tar").unlink()
    return folder


def plan(folder: pathlib.Path, where: str, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jaxclip.plan", f"--config={folder}/tiny.py", f"--topology={where}", *more],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("name", "options", "devices", "per_chip"),
    [
        ("v4:2x2x2", {}, 8, 1),
        ("v4:2x2x2", {"megacore": False}, 16, 2),
        ("v5e:2x4", {}, 8, 1),
        ("v5e:2x4", {"slices": 3}, 24, 1),
        ("v5p:2x2x4", {}, 16, 1),
        ("v6e:4x4", {}, 16, 1),
        ("v6e:1x1", {}, 1, 1),
        ("tpu7x:2x2x1", {}, 8, 2),
    ],
)
def test_topologies(name, options, devices, per_chip):
    found = topology(name, **options)
    assert (len(found.devices), found.chip.per_chip) == (devices, per_chip)
    assert ("two devices" in str(found)) == (per_chip == 2)


def test_one_object_for_programs_and_progress_for_people(folder):
    done = plan(folder, "v5e:2x4", "--json", "--config.batch_size=64", "--config.mesh.fsdp=2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] is True and found["devices"] == 8
    assert 0 < found["peak_hbm_bytes"] < found["available_hbm_bytes"]
    # Two moments of each parameter, and two counters of 4 bytes.
    parts = found["peak_hbm_parts"]
    assert parts["temporaries"] > 0 and parts["optimizer state"] == 2 * parts["parameters"] + 8
    assert found["collectives"] and all(item["bytes"] > 0 for item in found["collectives"].values())
    assert found["estimated_cycles"] > 0 and 0 < found["estimated_mfu"] < 1
    # A v5e turns at 1.5 GHz, to the digits that its peak of 197 TFLOP/s is known to.
    seconds = found["estimated_cycles"] / 1.5e9
    assert found["images_per_second_bound"] == pytest.approx(64 / seconds, rel=0.01)
    assert found["estimated_mfu"] == pytest.approx(found["model_flops"] / (seconds * 8 * 197e12), rel=0.01)
    assert found["compile_seconds"] > 0 and found["unknown_loops"] == 0
    assert "compiling batch 64, remat none" in done.stderr and "Traceback" not in done.stderr


def test_a_table_for_people(folder):
    done = plan(folder, "v5e:2x4", "--slices=2", "--config.batch_size=64")
    assert done.returncode == 0, done.stderr
    assert "send x" in done.stdout, "nothing goes from slice to slice"
    for words in (
        "2 slices of v5e:2x4 (16 devices)",
        "yes, ",
        "parameters",
        "optimizer state",
        "temporaries",
        "estimate",
    ):
        assert words in done.stdout


def test_a_step_that_does_not_fit_reports_the_excess_and_exits_3(folder):
    big = sizes(width=8192, layers=8, heads=64)
    done = plan(folder, "v5e:1x1", *big)
    assert done.returncode == 3, done.stderr
    assert "no: needs at least" in done.stdout and "GiB more than 15.75 GiB" in done.stdout
    assert "remat='full'" in done.stdout
    found = json.loads(plan(folder, "v5e:1x1", "--json", *big).stdout)
    assert found["fits"] is False and found["collectives"] is None and found["estimated_mfu"] is None
    assert found["peak_hbm_bytes"] > found["available_hbm_bytes"]


def sizes(**keys: int | str) -> Sequence[str]:
    return [f"--config.method.image.{key}={value}" for key, value in keys.items()]


def test_an_impossible_topology_is_one_line_with_exit_2(folder):
    done = plan(folder, "v5e:3x5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --topology=v5e:3x5: ") and done.stderr.count("\n") == 1


def test_a_batch_that_does_not_divide_is_one_line_with_exit_2(folder):
    done = plan(folder, "v5e:2x4", "--config.batch_size=12")
    assert done.returncode == 2
    assert "config.batch_size=12 must be a multiple of the 8 devices" in done.stderr.splitlines()[-1]


def test_parameters_are_gathered_after_the_update_and_under_fsdp_forward_and_backward(folder):
    """Overlapped gathers, which the compiler writes as fusions, included."""
    options = ["--json", "--config.batch_size=64", *sizes(scan=True, width=256, heads=4, layers=4, remat="full")]
    whole, shared = (
        json.loads(plan(folder, "v5e:2x4", *options, f"--config.mesh.fsdp={fsdp}").stdout) for fsdp in (1, 4)
    )
    # The blocks' kernels in bfloat16.
    kernels = 4 * 12 * 256**2 * 2
    # Each device updates an eighth of them, in float32, of gradients that it gets summed and in parts.
    assert 1.9 * kernels < whole["collectives"]["all-gather"]["bytes"] < 2.1 * kernels
    assert whole["collectives"]["reduce-scatter"]["bytes"] > 0.9 * kernels / 8
    # Once forward and once backward, and a little besides.
    assert 1.9 * kernels < shared["collectives"]["all-gather"]["bytes"] < 2.5 * kernels


@pytest.mark.parametrize("size", ("4", "100"))
def test_a_search_refuses_a_batch_that_does_not_divide(folder, size):
    done = plan(folder, "v5e:2x4", "--search", f"--config.batch_size={size}")
    assert done.returncode == 2 and f"config.batch_size={size} must be a multiple of the 8 devices" in done.stderr


def test_the_cycles_of_a_kernel_are_counted_and_those_of_all_kinds_are_all(folder):
    """Heads of width 64 take the kernel, others the plain form, which has none."""
    kernel, plain = (
        json.loads(plan(folder, "v5e:1x1", "--json", *sizes(width=128, heads=heads)).stdout) for heads in (2, 4)
    )
    assert kernel["kernel_cycles"] > 0 and plain["kernel_cycles"] == 0
    for found in (kernel, plain):
        assert sum(found["cycles_by_kind"].values()) == found["estimated_cycles"] > found["kernel_cycles"]
    assert kernel["cycles_by_kind"]["attention"] >= kernel["kernel_cycles"]
