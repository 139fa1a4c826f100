"""python benchmarks/loss_speed.py [--batch=1024 --width=512]: speed of the tiled loss compared with the dense one.

Runs on the default JAX device; value and gradient, best of several interleaved rounds.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from dense_loss import dense_softmax

from jaxclip.losses import softmax_contrastive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dtype", default=None, help="of the embeddings (default: bfloat16, on CPU float32)")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    device = jax.devices()[0]
    dtype = jnp.dtype(arguments.dtype or ("float32" if device.platform == "cpu" else "bfloat16"))
    print(f"{device.device_kind}, width {arguments.width}, {dtype}; milliseconds for value and gradient")
    print(f"{'batch':>9}{'dense':>12}{'tiled':>12}{'dense/tiled':>13}")
    for batch in arguments.batch:
        dense, tiled = measure(batch, arguments.width, dtype, arguments.rounds)
        slow = "does not fit" if dense is None else f"{dense * 1e3:.2f}"
        ratio = "" if dense is None else f"{dense / tiled:.2f}"
        print(f"{batch:>9,}{slow:>12}{tiled * 1e3:>12.2f}{ratio:>13}", flush=True)


def measure(batch: int, width: int, dtype: jnp.dtype, rounds: int) -> tuple[float | None, float]:
    """Seconds for the dense loss (None if its matrix does not fit) and for the tiled one."""
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((2, batch, width))
    rows = [jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype) for x in (images, texts)]
    arguments = (*rows, jnp.float32(14.3))
    losses = [dense_softmax, lambda *given: softmax_contrastive(*given)[0]]
    functions = [jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))) for loss in losses]
    best: list[float | None] = [None, None]
    for number, function in enumerate(functions):
        try:
            jax.block_until_ready(function(*arguments))
        except jax.errors.JaxRuntimeError:
            if number == 1:
                raise
        else:
            best[number] = float("inf")
    for _ in range(rounds):
        for number, function in enumerate(functions):
            previous = best[number]
            if previous is None:
                continue
            repeats = max(1, int(0.2 / min(previous, 0.2))) if previous < float("inf") else 1
            start_time = time.perf_counter()
            for _ in range(repeats):
                result = function(*arguments)
            jax.block_until_ready(result)
            best[number] = min(previous, (time.perf_counter() - start_time) / repeats)
    assert best[1] is not None
    return best[0], best[1]


if __name__ == "__main__":
    main()
