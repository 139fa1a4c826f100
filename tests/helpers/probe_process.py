"""python probe_process.py OUT.npz: fits a linear probe alone, or as one of the processes that the environment names."""

import os
import sys

import jax
import numpy as np

if "JAX_COORDINATOR_ADDRESS" in os.environ:
    jax.distributed.initialize(
        os.environ["JAX_COORDINATOR_ADDRESS"], int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
    )

from jaxclip import sharding
from jaxclip.config import MeshConfig
from jaxclip.evaluate.linear_probe import Features, fitted

rng = np.random.default_rng(0)
labels = rng.integers(0, 5, 301)
rows = (rng.standard_normal((5, 8))[labels] + rng.standard_normal((301, 8))).astype(np.float32)
train, validation = (Features(rows[part], labels[part]) for part in (slice(200), slice(200, None)))
probe = fitted(sharding.create(MeshConfig(), jax.devices()), train, validation, 5, refit=True)
np.savez(sys.argv[1], strength=probe.strength, accuracy=probe.accuracy, weights=probe.classifier.weights)
