"""Cycles of the attention kernel, from the schedule that the TPU's compiler makes of it.

The compiler's estimate of a program counts a kernel as nothing. Its schedule says how many bundles of instructions a
kernel has, of which a core starts one per cycle; what it waits for memory is not in them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp

from jaxclip.errors import UserError
from jaxclip.plan.chips import Chip, topology
from jaxclip.plan.hlo import Instruction
from jaxclip.towers.fused_attention import HEAD_WIDTH, Rows, at_once, fused_attention

_NAME = re.compile(r"attention_(forward|backward)_(\d+)x(\d+)(_causal)?(_masked)?")
_OPERAND = re.compile(r"operand_layout_constraints=\{(\w+)\[(\d+),(\d+),(\d+)\]")
# A bundle's line: its number, perhaps a mark, and one > for each loop around it.
_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|\d+)\s+(?:\w\w)?\s*: (>*) ?\{", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What the code of an attention kernel depends on.

    Attributes:
      tokens: of a row, with padding.
      keys, causal, masked: see `towers.fused_attention.Rows`.
      heads: of width 64.
      dtype: of queries, keys and values, as in a program: "bf16" or "f32".
    """

    tokens: int
    keys: int
    heads: int
    causal: bool
    masked: bool
    dtype: str


def cycles(instruction: Instruction, chip: Chip) -> int:
    """What a call of a kernel costs.

    Args:
      instruction: a custom call of a compiled program.
      chip: what the program is compiled for.

    Raises:
      UserError: it is no kernel of ours, or cannot be compiled alone.
    """
    name, operand = _NAME.search(instruction.scope()), _OPERAND.search(instruction.rest)
    if name is None or operand is None:
        raise UserError(f"the program has a kernel whose cycles are unknown: {instruction.name} {instruction.shape}")
    kernel = Kernel(
        tokens=int(operand[3]),
        keys=int(name[2]),
        heads=int(name[3]),
        causal=bool(name[4]),
        masked=bool(name[5]),
        dtype=operand[1],
    )
    return int(operand[2]) * cycles_per_row(kernel, chip)[name[1]] // chip.cores


@functools.cache
def cycles_per_row(kernel: Kernel, chip: Chip) -> dict[str, int]:
    """By direction, "forward" and "backward": the scheduled bundles of one row of tokens, with loops multiplied out.

    The kernel is compiled alone in a process of its own: the compiler writes its schedules only if it is told so before
    it starts, and then those of a whole step would be gigabytes.

    Raises:
      UserError: the compiler fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = (
            f"--xla_jf_dump_to={folder}",
            "--xla_jf_dump_llo_text=true",
            "--xla_jf_dump_llo_pass_label_regex=.*final.*",
        )
        environment = {"LIBTPU_INIT_ARGS": " ".join(options), "JAX_ENABLE_COMPILATION_CACHE": "false"}
        command = [
            sys.executable,
            "-m",
            "jaxclip.plan.kernels",
            chip.name,
            str(chip.cores),
            json.dumps(dataclasses.asdict(kernel)),
        ]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        found = {}
        for direction in ("forward", "backward"):
            for path in pathlib.Path(folder).glob(f"*attention_{direction}_*final_bundles.txt"):
                if "schedule-analysis" not in path.name:
                    found[direction] = _bundles(path.read_text(), _turns(kernel))
    if done.returncode or len(found) < 2:
        reason = done.stderr.strip().splitlines()[-1:] or ["no schedule was written"]
        raise UserError(f"the attention kernel {kernel} could not be compiled for {chip.name}: {reason[0]}")
    return found


def _turns(kernel: Kernel) -> int:
    """Of the loop over heads."""
    pairs = kernel.heads // 2
    return pairs // at_once(kernel.tokens, pairs)


def _bundles(schedule: str, turns: int) -> int:
    """Bundles of one row: the loop over rows counted once, the one over heads inside as often as it turns."""
    depths = [len(match[1]) for match in _BUNDLE.finditer(schedule)]
    if max(depths, default=0) != (2 if turns > 1 else 1):
        raise UserError(f"the schedule of the attention kernel has loops of depth {max(depths, default=0)}")
    return sum(turns if depth == 2 else 1 for depth in depths if depth)


def _compile(chip: str, cores: int, kernel: Kernel) -> None:
    """Compiles the kernel and its gradient, for a generation of so many cores per device."""
    shape = "1x1" if chip in ("v5e", "v6e") else "1x1x1"
    device = topology(f"{chip}:{shape}", megacore=chip != "v4" or cores == 2).devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    width = kernel.heads * HEAD_WIDTH
    rows = Rows(kernel.keys, kernel.causal, kernel.masked)

    def both(qkv, bias, mask, gradient):  # type: ignore[no-untyped-def]
        out, pullback = jax.vjp(lambda qkv, bias: fused_attention(qkv, bias, mask, rows), qkv, bias)
        return out, pullback(gradient)

    def of(*shape: int, dtype: str = kernel.dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            shape, {"bf16": jnp.bfloat16, "f32": jnp.float32, "s32": jnp.int32}[dtype], sharding=sharding
        )

    # Two rows for each core: the loop over a single one would not be there.
    lead = (2 * cores, kernel.tokens)
    mask = of(2 * cores, 1, kernel.tokens, dtype="s32") if kernel.masked else None
    jax.jit(both).lower(of(*lead, 3 * width), of(3 * width), mask, of(*lead, width)).compile()


if __name__ == "__main__":
    _compile(sys.argv[1], int(sys.argv[2]), Kernel(**json.loads(sys.argv[3])))
