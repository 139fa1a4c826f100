"""python benchmarks/hostile_input.py: time and memory for damaged and malicious data.

1. Malicious images, 500 by default: unusable ones, damaged ones, and the most expensive ones that are allowed.
2. Malicious tars, each opened and read completely.
3. A training epoch over more than 10,000 bad records among as many good ones, in a process of its own.

The records are those of tests/helpers/hostile.py, the tars those of tests/helpers/hostile_tars.py.
"""

from __future__ import annotations

import argparse
import collections
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "helpers"))

import hostile  # noqa: E402
from hostile_tars import ARCHIVES  # noqa: E402

from jaxclip.config import DataConfig  # noqa: E402
from jaxclip.data import tokenizers  # noqa: E402
from jaxclip.data.images import crops  # noqa: E402
from jaxclip.data.images.decode import Unreadable  # noqa: E402
from jaxclip.data.loader import TrainingLoader  # noqa: E402
from jaxclip.data.record import Skip  # noqa: E402
from jaxclip.data.sources import open_source  # noqa: E402
from jaxclip.data.views import Views  # noqa: E402
from jaxclip.errors import UserError  # noqa: E402
from jaxclip.inputs import Image, Text  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--of-each-kind", type=int, default=300, help="bad records; 35 kinds")
    parser.add_argument("--deliver", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow's
    if options.deliver:
        deliver(options.deliver)
        return
    crop_images(options.images)
    tars()
    with tempfile.TemporaryDirectory() as folder:
        reasons, pattern = hostile.write_shards(pathlib.Path(folder), options.of_each_kind, 10_000)
        print(
            f"\n{sum(reason is not None for reason in reasons):,} bad records among {reasons.count(None):,} good ones"
        )
        subprocess.run([sys.executable, __file__, "--deliver", pattern], check=True)


def crop_images(number: int) -> None:
    """Crops malicious images as in training, and prints the outcome and the maximum time of each kind."""
    rng = np.random.default_rng(0)
    print(f"{'image':34} {'ends as':22} {'bytes':>12} {'seconds':>8}")
    worst = 0.0
    made = [(kind, make()) for kind, make in hostile.DEAR.items()]
    kinds = [*hostile.IMAGES.items()]
    while len(made) < number:
        kind, (make, _) = kinds[len(made) % len(kinds)]
        made.append((kind, make(rng) if len(made) % 3 else hostile.flip(make(rng) + b"\0", rng, 0, 4)))
    slowest: dict[str, tuple[float, str, int]] = {}
    for kind, data in made:
        start_time = time.perf_counter()
        try:
            crops.random_resized_crop(data, 224, rng, (0.9, 1.0))
            end = "used"
        except Unreadable as error:
            end = str(error)
        seconds = time.perf_counter() - start_time
        worst = max(worst, seconds)
        slowest[kind] = max(slowest.get(kind, (0.0, "", 0)), (seconds, end, len(data)))
    for kind, (seconds, end, size) in sorted(slowest.items(), key=lambda item: -item[1][0])[:20]:
        print(f"{kind:34} {end:22} {size:>12,} {seconds:>8.3f}")
    print(f"{len(made)} images, the slowest took {worst:.3f} s; peak memory {peak():.0f} MiB")


def tars() -> None:
    """Opens and reads malicious tars, and prints the outcomes and the maximum time."""
    logging.disable()
    ends: collections.Counter[str] = collections.Counter()
    slowest = (0.0, "")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAXCLIP_CACHE"] = f"{folder}/cache"
        for name, archive in ARCHIVES.items():
            path = pathlib.Path(folder) / "hostile.tar"
            path.write_bytes(archive)
            start_time = time.perf_counter()
            try:
                source = open_source(str(path))
                records = source.read(range(len(source)))
                has_skips = any(isinstance(record, Skip) for record in records)
                ends["some records skipped" if has_skips else "records read"] += 1
            except UserError:
                ends["rejected"] += 1
            slowest = max(slowest, (time.perf_counter() - start_time, name))
    print(f"\n{len(ARCHIVES)} tars, the slowest took {slowest[0]:.3f} s ({slowest[1]})")
    print("; ".join(f"{end}: {count}" for end, count in ends.most_common()))


def deliver(pattern: str) -> None:
    """Reads one epoch of training batches, and prints the counts of skipped records."""
    source = open_source(pattern)
    tokenizer = tokenizers.train(["number 0123456789 long"] * 2, 600)
    config = DataConfig(train=pattern, train_vocabulary=600, max_skip_rate=1.0)
    views = Views({"image": Image(224), "text": Text(77)}, config, tokenizer)
    loader = TrainingLoader(source, views, config, 256, 0)
    start_time = time.perf_counter()
    rows = sum(len(batch["image"]) for batch in loader.batches(0, len(source) // 256 + 1))
    print(f"{rows:,} rows delivered in {time.perf_counter() - start_time:.0f} s; peak memory {peak():.0f} MiB")
    for reason, count in loader.skips.counts.most_common():
        print(f"  {count:>7,} x {reason}, such as {loader.skips.example(reason)}")


def peak() -> float:
    """The peak resident memory of this process in MiB."""
    # Not getrusage, whose value a child process inherits from its parent across exec.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
