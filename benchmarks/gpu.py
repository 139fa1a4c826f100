"""python benchmarks/gpu.py STAGE: the training step and the contrastive losses on one GPU, beside open_clip's step.

Stages: b16 and l14, images per second and MFU in bfloat16 at the largest batch that fits, taking turns with open_clip
compiled by torch.compile where it is installed, each side in processes of its own; loss, milliseconds and memory of the
value and the gradient at 32,768 and 65,536 pairs, tiled and dense, softmax and sigmoid. Needs no TensorFlow.
--dry runs small sizes on any device, to see that it works.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dense_loss import dense_sigmoid, dense_softmax

from jaxclip import methods, optimizer, recipes, sharding
from jaxclip.config import MeshConfig, OptimizerConfig
from jaxclip.losses import sigmoid_contrastive, softmax_contrastive
from jaxclip.step import Step

# Dense bfloat16 operations per second (NVIDIA's data sheets).
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}
MODELS = {
    "b16": {"patch_size": 16, "width": 768, "layers": 12, "text_width": 512, "text_layers": 12, "embed_dim": 512},
    "l14": {"patch_size": 14, "width": 1024, "layers": 24, "text_width": 768, "text_layers": 12, "embed_dim": 768},
}
# Forward and backward operations of a pair, by `jaxclip.plan`: without recomputation.
OPERATIONS = {"b16": 123.2e9, "l14": 525.8e9}
BATCHES = {"b16": (1024, 768, 512, 256), "l14": (384, 256, 128, 64)}
OPEN_CLIP = {"b16": "ViT-B-16", "l14": "ViT-L-14"}
TURNS, STEPS = 2, 10
PEER = "open_clip, compiled"

Run = Callable[[], None]  # some steps, until they have ended


def out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def ours(name: str, batch: int, *, dry: bool, remat: str) -> Run:
    sizes = dict(MODELS[name], layers=2, text_layers=2) if dry else MODELS[name]
    image_size = 32 if dry else 224
    method = methods.from_config(recipes.clip(image_size=image_size, remat=remat, **sizes).to_dict())
    mesh = sharding.create(MeshConfig(), jax.devices()[:1])
    step = Step(method, optimizer.create(OptimizerConfig(learning_rate=1e-4), 1000), mesh, precision="bfloat16")
    rng = np.random.default_rng(0)
    rows = {
        "image": rng.integers(0, 256, (batch, image_size, image_size, 3), np.uint8),
        "text": rng.integers(0, 49_000, (batch, 77), np.int32),
        "text_end": rng.integers(5, 77, batch, np.int32),
    }
    rows = jax.device_put(rows, sharding.batch_sharding(mesh))
    state = step.init(0)

    def run() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, metrics = step.train(state, rows)
        assert float(metrics["finite"]) == 1

    run()
    return run


def peer(name: str, batch: int) -> Run:
    """open_clip's model and loss with torch.compile, autocast to bfloat16, fused AdamW."""
    import open_clip
    import torch

    torch.set_float32_matmul_precision("high")
    model = open_clip.create_model(OPEN_CLIP[name], device="cuda", output_dict=True).train()
    compiled, loss = torch.compile(model), open_clip.ClipLoss()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.randn(batch, 3, 224, 224, device="cuda", dtype=torch.bfloat16)
    texts = torch.randint(1, 49_000, (batch, 77), device="cuda")

    def run() -> None:
        for _ in range(STEPS):
            adam.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16):
                value = loss(**compiled(images, texts))
            value.backward()
            adam.step()
        torch.cuda.synchronize()

    run()
    return run


def largest(batches: tuple[int, ...], make: Callable[[int], Run]) -> tuple[int, Run]:
    """The first batch that fits, with its steps."""
    for batch in batches:
        try:
            return batch, make(batch)
        except Exception as error:  # Both libraries have errors of their own for it.
            if not out_of_memory(error):
                raise
    raise SystemExit("no batch fits")


def measure(name: str, side: str, dry: bool) -> None:
    """Prints the largest batch of a side that fits, the seconds of a step, and what the device is."""
    make = functools.partial(peer, name) if side == PEER else functools.partial(ours, name, dry=dry, remat=side)
    batch, run = largest((8,) if dry else BATCHES[name], make)
    start_time = time.perf_counter()
    run()
    seconds = (time.perf_counter() - start_time) / STEPS
    print(json.dumps([batch, seconds, "" if side == PEER else jax.devices()[0].device_kind]))


def models(name: str, dry: bool) -> None:
    sides = ["none", "products"]
    if not dry and importlib.util.find_spec("open_clip"):
        sides.append(PEER)
    found: dict[str, list[tuple[int, float]]] = {side: [] for side in sides}
    # Neither library gives back memory that it has had: each turn is a process, and this one does not look at the
    # device, for which jax would take most of the memory. Both keep what they have compiled.
    kind = ""
    for _ in range(1 if dry else TURNS):
        for side in sides:
            command = [sys.executable, __file__, name, f"--side={side}", *(["--dry"] if dry else [])]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            batch, seconds, device = json.loads(printed.splitlines()[-1])
            found[side].append((batch, seconds))
            kind = kind or device
    peak = next((peak for card, peak in PEAKS.items() if card in kind), None)
    print(f"{name} on {kind}, bfloat16, median of turns of {STEPS} steps")
    for side, turns in found.items():
        speed = statistics.median(batch / seconds for batch, seconds in turns)
        mfu = f", MFU {OPERATIONS[name] * speed / peak:.1%}" if peak and not dry else ""
        title = side if side == PEER else f"jaxclip, remat {side}"
        print(f"{title:<24} batch {turns[0][0]:>5}: {speed:>8,.0f} images/s{mfu}", flush=True)


def losses(dry: bool) -> None:
    device = jax.devices()[0]
    print(f"losses on {device.device_kind}, width 768, bfloat16: value and gradient")
    width = 64 if dry else 768
    for batch in (256,) if dry else (32_768, 65_536):
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((2, batch, width))
        images, texts = (jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.bfloat16) for x in rows)
        kinds: dict[str, tuple[Any, tuple]] = {
            "softmax, tiled": (lambda *given: softmax_contrastive(*given)[0], (images, texts, jnp.float32(20))),
            "softmax, dense": (dense_softmax, (images, texts, jnp.float32(20))),
            "sigmoid, tiled": (sigmoid_contrastive, (images, texts, jnp.float32(10), jnp.float32(-10))),
            "sigmoid, dense": (dense_sigmoid, (images, texts, jnp.float32(10), jnp.float32(-10))),
        }
        for kind, (loss, given) in kinds.items():
            function = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(given))))).lower(*given).compile()
            memory = function.memory_analysis()
            size = f"{memory.temp_size_in_bytes / 2**20:,.0f} MiB" if memory else "unknown"
            try:
                jax.block_until_ready(function(*given))
            except jax.errors.JaxRuntimeError as error:
                if not out_of_memory(error):
                    raise
                print(f"{batch:>7,} {kind}: does not fit, {size} of temporaries", flush=True)
                continue
            start_time = time.perf_counter()
            for _ in range(5):
                result = function(*given)
            jax.block_until_ready(result)
            print(f"{batch:>7,} {kind}: {(time.perf_counter() - start_time) / 5 * 1e3:,.1f} ms, {size} of temporaries")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=[*MODELS, "loss"])
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(tempfile.gettempdir()) / "jaxclip-gpu"))
    if arguments.side:
        measure(arguments.stage, arguments.side, arguments.dry)
    elif arguments.stage == "loss":
        losses(arguments.dry)
    else:
        models(arguments.stage, arguments.dry)


if __name__ == "__main__":
    main()
