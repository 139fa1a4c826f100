"""python robustness_process.py OUT.json: a tiny corruption robustness, alone or in one of several processes."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

if __name__ == "__main__" and "JAX_COORDINATOR_ADDRESS" in os.environ:
    jax.distributed.initialize(
        os.environ["JAX_COORDINATOR_ADDRESS"], int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
    )

from jaxclip import methods, sharding
from jaxclip.config import MeshConfig
from jaxclip.data.loader import examples
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import open_source
from jaxclip.encoder import Encoder
from jaxclip.evaluate import Result
from jaxclip.evaluate.corruption_robustness import Evaluator
from jaxclip.inputs import Image

SIZE = 16
OPTIONS = {"kinds": ("gaussian_noise", "contrast", "jpeg_compression"), "strengths": (1, 4), "images": 45}


class Blocks(nnx.Module):
    """The mean colors of 4 x 4 blocks, less the mean of all of them."""

    def __init__(self):
        self.weight = nnx.Param(jnp.ones(()))

    def encode_image(self, images, ctx):
        blocks = images.reshape(-1, 4, SIZE // 4, 4, SIZE // 4, 3).astype(jnp.float32).mean(axis=(2, 4))
        return (blocks - blocks.mean(axis=(1, 2, 3), keepdims=True)).reshape(-1, 48) * self.weight


@dataclasses.dataclass(frozen=True)
class Method(methods.Method):
    """A method of images alone."""

    def inputs(self):
        return {"image": Image(SIZE)}

    def init(self, rngs):
        return Blocks()


def block_means(images: np.ndarray) -> np.ndarray:
    """The same in NumPy: float [n, 48]."""
    blocks = images.reshape(-1, 4, SIZE // 4, 4, SIZE // 4, 3).mean(axis=(2, 4))
    return (blocks - blocks.mean(axis=(1, 2, 3), keepdims=True)).reshape(-1, 48)


def class_means() -> np.ndarray:
    """Of each class of `shapes:seen`, what its first images look like: float32 [classes, 48]."""
    source = open_source("shapes:seen")
    sums = np.zeros((len(source.class_names), 48), np.float32)
    for _, image, record in examples(source, range(400), SIZE, Image(SIZE).pixels, SkipLog()):
        sums[record.label] += block_means(image[None])[0]
    return sums


class ClassMeans(Encoder):
    """An encoder that takes texts for pictures of their class."""

    def texts(self, variables, texts):
        return class_means()[: len(texts)]


def evaluated(devices: list[jax.Device], data: str = "shapes:seen", **options) -> Result:
    mesh = sharding.create(MeshConfig(), devices)
    variables, _ = methods.init_variables(Method(), jax.random.key(0))
    encoder = ClassMeans(Method(), mesh, "float32", None, batch_size=16)
    evaluator = Evaluator(data, templates=("{c}",), **(OPTIONS | options))
    source = open_source(data)
    return evaluator.run(encoder, variables, source, SkipLog(), evaluator.prepare(source, ""))


if __name__ == "__main__":
    result = evaluated(jax.devices())
    content = {"metrics": dict(result.metrics), "cells": result.further["acc1_by_strength"]}
    shown = [example.image.tolist() for example in result.examples]
    with open(sys.argv[1], "w") as file:
        json.dump(content | {"shown": shown}, file)
