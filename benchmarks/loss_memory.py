"""python benchmarks/loss_memory.py: peak HBM of the contrastive losses according to the TPU's compiler, as a table.

Needs the extra `plan` (libtpu) but no TPU. Replaces the table between two marks in docs/contrastive_loss.md.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from dense_loss import dense_softmax  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from jaxclip import sharding  # noqa: E402
from jaxclip.config import MeshConfig  # noqa: E402
from jaxclip.losses import sigmoid_contrastive, softmax_contrastive  # noqa: E402
from jaxclip.losses.layouts import Blocks, choose_layout  # noqa: E402
from jaxclip.plan.chips import topology  # noqa: E402

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "contrastive_loss.md"
BEGIN, END = "<!-- loss_memory: begin -->", "<!-- loss_memory: end -->"
PODS = {8: "v5e:2x4", 64: "v5e:8x8", 256: "v5e:16x16"}
BATCHES = {"32k": 2**15, "256k": 2**18, "1M": 2**20}
WIDTH = 768


def main() -> None:
    lines = ["| chips | batch | softmax | sigmoid | layout | dense softmax |", "|---|---|---|---|---|---|"]
    for devices, pod in PODS.items():
        mesh = sharding.create(MeshConfig(), topology(pod).devices)
        for name, batch in BATCHES.items():
            layout = choose_layout(batch, WIDTH, 2, devices)
            how = f"{layout.down} x {layout.across} blocks" if isinstance(layout, Blocks) else "ring"
            softmax, sigmoid, dense = (peak(mesh, batch, loss) for loss in ("softmax", "sigmoid", "dense"))
            lines.append(f"| {devices} ({pod}) | {name} | {softmax} | {sigmoid} | {how} | {dense} |")
            print(lines[-1], file=sys.stderr, flush=True)
    text = PAGE.read_text()
    table = f"{BEGIN}\n" + "\n".join(lines) + f"\n{END}"
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: table, text, flags=re.DOTALL))
    print(PAGE)


def peak(mesh: jax.sharding.Mesh, batch: int, loss: str) -> str:
    """Peak HBM per chip of value and gradient with bfloat16 embeddings, including inputs and gradients."""
    rows = jax.ShapeDtypeStruct((batch, WIDTH), jnp.bfloat16, sharding=sharding.batch_sharding(mesh))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    functions = {
        "softmax": (lambda *given: softmax_contrastive(*given, mesh=mesh)[0], 1),
        "sigmoid": (lambda *given: sigmoid_contrastive(*given, mesh=mesh), 2),
        "dense": (dense_softmax, 1),
    }
    function, scalars = functions[loss]
    arguments = (rows, rows) + (scalar,) * scalars
    gradients = jax.value_and_grad(function, argnums=tuple(range(len(arguments))))
    shardings = (scalar.sharding, tuple(argument.sharding for argument in arguments))
    lowered = jax.jit(gradients, out_shardings=shardings).lower(*arguments)
    try:
        size = lowered.compile().memory_analysis().peak_memory_in_bytes
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(r"HLO temporaries \(([\d.]+[KMGT]?)\)", str(error))
        if needed is None:
            raise
        return f"does not fit: {needed[1].replace('G', ' GiB').replace('T', ' TiB')}"
    return f"{size / 2**20:,.0f} MiB" if size >= 10 * 2**20 else f"{size / 2**20:,.1f} MiB"


if __name__ == "__main__":
    main()
