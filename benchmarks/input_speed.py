"""Throughput of the input pipeline compared with open_clip's, in images per second.

    python benchmarks/input_speed.py 'photos/*.tar' --vocabulary=bpe_simple_vocab_16e6.txt.gz --peer-python=PATH

The photographs are read in their original size and at a short side of 256 pixels (JPEG, quality 90). Both pipelines
crop at random (0.9 to 1 of the area), resize with antialiasing to 224 x 224 RGB, and tokenize the captions, with two
threads here and two workers in open_clip. They alternate, and the best round of each counts. Then the rate is measured
once more, and the fraction of time that a consumer of 80 % of this rate waits for data.

The other Python needs torch, torchvision, open_clip_torch and webdataset. Without --peer-python, open_clip is left out.
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator

from PIL import Image

from jaxclip import inputs
from jaxclip.config import DataConfig
from jaxclip.data import tokenizers
from jaxclip.data.loader import TrainingLoader
from jaxclip.data.record import Record
from jaxclip.data.sources import open_source
from jaxclip.data.views import Views

_BATCH = 64
_PEER = pathlib.Path(__file__).with_name("open_clip_input.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="webdataset shards of photographs with captions")
    parser.add_argument("--vocabulary", required=True, help="OpenAI's bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("--peer-python", help="the Python of an environment with open_clip")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1536, help="per round")
    options = parser.parse_args()
    tokenizer = tokenizers.load(options.vocabulary)
    print(f"{'photographs':>22} {'jaxclip':>9} {'open_clip':>9} {'ratio':>6} {'data wait at 80 %':>18}")
    with tempfile.TemporaryDirectory() as folder:
        for name, shard in _store(options.photos, pathlib.Path(folder)):
            config = DataConfig(train=str(shard), vocabulary="given")
            views = Views({"image": inputs.Image(224), "text": inputs.Text(77)}, config, tokenizer)
            loader = TrainingLoader(open_source(str(shard)), views, config, _BATCH, seed=0)
            rates, peer_rates = [], []
            for _ in range(options.rounds):
                rates.append(_rate(loader, options.images))
                if options.peer_python:
                    peer_rates.append(_peer_rate(options.peer_python, shard, options.images))
            rate, peer_rate = max(rates), max(peer_rates, default=float("nan"))
            # 80 % of the current rate, because the speed of a shared machine varies over minutes.
            wait = _wait(loader, options.images, 0.8 * _rate(loader, 2 * options.images))
            print(f"{name:>22} {rate:>7.0f}/s {peer_rate:>7.0f}/s {rate / peer_rate:>6.2f} {wait:>18.2%}", flush=True)


def _rate(loader: TrainingLoader, images: int) -> float:
    """Images per second from the second batch on, because the first one includes the start-up."""
    steps = images // _BATCH
    batches = loader.batches(0, steps + 1)
    next(batches)
    start_time = time.perf_counter()
    count = sum(len(batch["image"]) for batch in batches)
    return count / (time.perf_counter() - start_time)


def _wait(loader: TrainingLoader, images: int, rate: float) -> float:
    """The fraction of time that a consumer of `rate` images per second waits for the next batch."""
    steps = 2 * images // _BATCH
    batches = loader.batches(0, steps + 4)
    for _ in range(4):
        next(batches)
    wait_time, start_time = 0.0, time.perf_counter()
    for _ in range(steps):
        time.sleep(_BATCH / rate)
        request_time = time.perf_counter()
        next(batches)
        wait_time += time.perf_counter() - request_time
    return wait_time / (time.perf_counter() - start_time)


def _peer_rate(python: str, shard: pathlib.Path, images: int) -> float:
    ran = subprocess.run(
        [python, str(_PEER), str(shard), str(images), str(_BATCH)], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        sys.exit(f"{python} {_PEER.name} failed: {ran.stderr.strip().splitlines()[-1]}")
    return json.loads(ran.stdout.splitlines()[-1])


def _store(photos: str, folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """Writes the photographs into one shard in original size, and into another with a short side of 256 pixels."""
    source = open_source(photos)
    records = [record for record in source.read(range(len(source))) if isinstance(record, Record)]
    for name, smaller in (("as they are", False), ("short side 256", True)):
        shard = folder / f"{'small' if smaller else 'full'}.tar"
        total = 0
        with tarfile.open(shard, "w") as tar:
            for number, record in enumerate(records):
                assert isinstance(record.image, bytes)
                image = _at_256(record.image) if smaller else record.image
                total += len(image)
                for suffix, data in (("jpg", image), ("txt", record.captions[0].encode())):
                    member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        yield f"{name}, {total / len(records) / 1000:.0f} kB", shard


def _at_256(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = 256 / min(image.size)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=90)
    return file.getvalue()


if __name__ == "__main__":
    main()
