"""python -m jaxclip.weights SRC DST --to=huggingface: conversion of a model, or of its image tower, between forms."""

from __future__ import annotations

import argparse
import os
import sys
from typing import get_args

from jaxclip.errors import UserError
from jaxclip.exit_status import run_command
from jaxclip.paths import local
from jaxclip.progress import phase
from jaxclip.weights import image_part
from jaxclip.weights.export import Form, check_new, save
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
    forms = dict.fromkeys((*get_args(Form), *get_args(image_part.Form)))
    parser.add_argument("--to", required=True, choices=forms, help="whose form to write")
    parser.add_argument(
        "--part", choices=("image",), help="what to write: the image tower alone (default: the whole model)"
    )
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
    from jaxclip.weights.load import open_weights
    from jaxclip.weights.positions import at_size, read_at_size

    # On the CPU, because the accelerator's memory may be smaller than the model.
    jax.config.update("jax_platforms", "cpu")
    folder = local(arguments.folder, "DST")
    check_new(folder)
    if arguments.part:
        _check_part(arguments)
    elif arguments.to not in get_args(Form):
        raise UserError(f"--to={arguments.to} writes an image tower alone: add --part=image")
    weights = open_weights(
        arguments.source, from_flags(arguments), step=arguments.step, tokenizer_needed=not arguments.part
    )
    method = at_size(weights.method, arguments.image_size, arguments.context_length)
    part = image_part.part_of(method) if arguments.part else None
    mesh = sharding.create(MeshConfig(), jax.devices()[:1])
    with phase("reading"):
        params, stats = read_at_size(weights, method, mesh, arguments.dtype)
    with phase("writing"):
        if part is None:
            save(folder, arguments.to, method, weights.tokenizer, params, stats)
            count = sum(leaf.size for leaf in jax.tree.leaves(params))
        else:
            count = image_part.save(folder, arguments.to, part, params, stats)
    print(f"{folder}: {count:,} parameters for {arguments.to}")
    if part is not None:
        print(f"images have mean={part.pixels.mean} and std={part.pixels.std}, of values in [0, 1]")


def _check_part(arguments: argparse.Namespace) -> None:
    """Raises UserError for flags that have no meaning for an image tower."""
    if arguments.to not in get_args(image_part.Form):
        others = ", ".join(get_args(image_part.Form))
        raise UserError(f"--to={arguments.to} writes whole models: leave --part out, or choose --to of {others}")
    if arguments.context_length is not None:
        raise UserError(f"--context-length={arguments.context_length}: --part=image has no texts; remove it")


if __name__ == "__main__":
    sys.exit(main())
