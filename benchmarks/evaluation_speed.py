"""python benchmarks/evaluation_speed.py PATH --data=SOURCE: images per second of an evaluation and its encoder alone.

Both encode the images of --data with the model at PATH, three times each, in turn: once as evaluations do, which read,
decode and prepare them meanwhile, and once the same batches from memory. Prints the medians and their ratio. Reading
competes with a CPU that encodes; beside an accelerator it has the CPU for itself.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import jaxclip
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources import open_source

_TIMES = 3


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch_size", type=int, default=64)
    arguments = parser.parse_args()
    encoder, variables = jaxclip.load(arguments.path, batch_size=arguments.batch_size).evaluation_parts()
    source = open_source(arguments.data)
    batches = [batch.images for batch in encoder.batches(source, SkipLog(), range(len(source)))]
    images = np.concatenate(batches)[: len(source)]
    encoder.images(variables, images[: arguments.batch_size])  # compiles
    seconds: dict[str, list[float]] = {"encoder alone": [], "evaluation": []}
    for _ in range(_TIMES):
        for name, run in {
            "encoder alone": lambda: encoder.images(variables, images),
            "evaluation": lambda: encoder.source(variables, source, SkipLog()),
        }.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    rates = {name: len(source) / statistics.median(times) for name, times in seconds.items()}
    print(", ".join(f"{name}: {rate:.1f} images/s" for name, rate in rates.items()))
    print(f"evaluation / encoder alone: {rates['evaluation'] / rates['encoder alone']:.2f}")


if __name__ == "__main__":
    main()
