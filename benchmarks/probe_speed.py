"""python benchmarks/probe_speed.py PATH --train=SOURCE --data=SOURCE: the linear probe beside scikit-learn's.

Both search the same strengths of the regularizer by the same images with the same tolerance, on the features of the
model at PATH: ours as jaxclip.evaluate does, scikit-learn's LogisticRegression with a warm start and float32. Prints
seconds (ours with compilation), the strength found, and the accuracy on --data.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402

import jaxclip  # noqa: E402
from jaxclip import sharding  # noqa: E402
from jaxclip.config import MeshConfig  # noqa: E402
from jaxclip.data.skips import SkipLog  # noqa: E402
from jaxclip.data.sources import open_source  # noqa: E402
from jaxclip.evaluate.linear_probe import Features, accuracy_of, fitted  # noqa: E402
from jaxclip.evaluate.logistic_regression import ITERATIONS, TOLERANCE  # noqa: E402


def searched(train: Features, validation: Features) -> tuple[float, LogisticRegression]:
    """scikit-learn's side of `fitted`: the strength, and the classifier that is fitted to all."""
    machine = LogisticRegression(max_iter=ITERATIONS, tol=TOLERANCE, warm_start=True)
    tried: dict[int, float] = {}

    def attempt(numbers: list[int]) -> int:
        for number in numbers:
            if -48 <= number <= 48 and number not in tried:
                machine.C = 10.0 ** (-number / 8)
                tried[number] = machine.fit(*train).score(*validation)
        return max(tried, key=lambda number: (tried[number], number))

    # From the strongest to the weakest, which a warm start suits best.
    best = attempt(list(range(48, -49, -16)))
    for step in (8, 4, 2, 1):
        best = attempt([best + step, best - step])
    machine.C = 10.0 ** (-best / 8)
    machine.fit(*(np.concatenate(parts) for parts in zip(train, validation, strict=True)))
    return 10.0 ** (best / 8), machine


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--train", required=True)
    parser.add_argument("--data", required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    encoder, variables = jaxclip.load(arguments.path).evaluation_parts()

    def features(where: str) -> Features:
        embedded = encoder.source(variables, open_source(where), SkipLog(), function="features")
        kept = [row for row, label in enumerate(embedded.labels) if label is not None]
        return Features(
            np.asarray(embedded.outputs[kept], np.float32), np.array([embedded.labels[row] for row in kept])
        )

    everything, test = features(arguments.train), features(arguments.data)
    order = np.random.default_rng(0).permutation(len(everything.rows))
    count = round(0.1 * len(order))
    validation, train = everything.at(np.sort(order[:count])), everything.at(np.sort(order[count:]))
    classes = int(max(part.labels.max() for part in (everything, test))) + 1
    print(f"{len(train.rows)} + {count} training images, {train.rows.shape[1]} features, {classes} classes")
    start = time.perf_counter()
    ours = fitted(sharding.create(MeshConfig(), jax.devices()), train, validation, classes, refit=True)
    seconds = time.perf_counter() - start
    print(f"jaxclip: {seconds:.1f} s, strength {ours.strength:.3g}, accuracy {accuracy_of(ours.classifier, test):.2%}")
    start = time.perf_counter()
    strength, machine = searched(train, validation)
    theirs = time.perf_counter() - start
    print(f"scikit-learn: {theirs:.1f} s, strength {strength:.3g}, accuracy {machine.score(*test):.2%}")
    print(f"{theirs / seconds:.1f} times as fast")


if __name__ == "__main__":
    main()
