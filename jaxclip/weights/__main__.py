"""python -m jaxclip.weights SRC DST --to=huggingface: conversion of a model between forms of weights."""

from __future__ import annotations

import argparse
import os
import sys
from typing import get_args

from jaxclip.exit_status import run_command
from jaxclip.paths import local
from jaxclip.progress import phase
from jaxclip.weights.export import Form
from jaxclip.weights.overrides import add_flags, from_flags


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxclip.weights", description=__doc__)
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a run's workdir or checkpoint, a Hugging Face or open_clip folder, a .safetensors, a big_vision .npz",
    )
    parser.add_argument("--step", type=int, help="which checkpoint of a run (default: the newest)")
    parser.add_argument("folder", metavar="DST", help="the folder to make")
    parser.add_argument("--to", required=True, choices=get_args(Form), help="whose form to write")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the numbers written")
    parser.add_argument("--context-length", type=int, help="tokens: position embeddings are resized to it")
    add_flags(parser)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return run_command(lambda _: _convert(arguments))


def _convert(arguments: argparse.Namespace) -> None:
    import jax

    from jaxclip import sharding
    from jaxclip.config import MeshConfig
    from jaxclip.weights.export import check_new, save
    from jaxclip.weights.load import open_weights
    from jaxclip.weights.positions import at_size, read_at_size

    # On the CPU, because the accelerator's memory may be smaller than the model.
    jax.config.update("jax_platforms", "cpu")
    folder = local(arguments.folder, "DST")
    check_new(folder)
    weights = open_weights(arguments.source, from_flags(arguments), step=arguments.step)
    method = at_size(weights.method, arguments.image_size, arguments.context_length)
    mesh = sharding.create(MeshConfig(), jax.devices()[:1])
    with phase("reading"):
        params, stats = read_at_size(weights, method, mesh, arguments.dtype)
    assert weights.tokenizer is not None
    with phase("writing"):
        save(folder, arguments.to, method, weights.tokenizer, params, stats)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{folder}: {count:,} parameters for {arguments.to}")


if __name__ == "__main__":
    sys.exit(main())
