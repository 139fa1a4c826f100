"""Start-up time and memory of a source of a billion records.

    python benchmarks/billion_records.py FOLDER

Shards and their index are created in FOLDER, which is removed at the end. Three shards contain real records. The others
are sparse files, and so are their parts of the index: they have realistic sizes but need no disk space, and their
records are empty. Then a new process opens the shards as in training, computes the ids of batches at steps far apart,
reads the real records, and looks up the records of a whole batch.
"""

from __future__ import annotations

import argparse
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time

import numpy as np

from jaxclip.data.index.checked import Writer
from jaxclip.data.index.keep import keep
from jaxclip.data.index.tar import Facts, column_places, write_head, write_part
from jaxclip.data.index.tar_scan import scan
from jaxclip.data.order import Shuffled
from jaxclip.data.record import Record
from jaxclip.data.sources.tar import TarShards
from jaxclip.data.storage import Files, cache_folder, fingerprint, list_files

_BATCH = 32_768
_STEPS = (0, 1, 1000, 30_517, 1_000_000, 1_000_000_000)
_REAL_RECORDS = 1000  # in each real shard
_RECORD_BYTES = 30_000  # of the synthetic records
_NAME_BYTES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="created, and removed at the end")
    parser.add_argument("--records", type=int, default=1_000_000_000)
    parser.add_argument("--shards", type=int, default=10_000, help="at least 4")
    parser.add_argument("--start-time", type=float, help=argparse.SUPPRESS)  # marks the new process
    options = parser.parse_args()
    if options.start_time is not None:
        _measure(options.folder, options.shards, options.start_time)
        return
    if options.folder.exists():
        parser.error(f"{options.folder} already exists; choose a new folder")
    options.folder.mkdir()
    try:
        os.environ["JAXCLIP_CACHE"] = str(options.folder / "cache")
        _make(options.folder, options.records, options.shards)
        flags = ["--start-time", repr(time.monotonic()), "--shards", str(options.shards)]
        subprocess.run([sys.executable, __file__, str(options.folder), *flags], check=True)
    finally:
        shutil.rmtree(options.folder)


def _real_shards(shards: int) -> tuple[int, int, int]:
    return 0, shards // 2, shards - 1


def _make(folder: pathlib.Path, records: int, shards: int) -> None:
    real = _real_shards(shards)
    sizes = np.zeros((shards, 3), np.int64)
    synthetic = np.setdiff1d(np.arange(shards), real)
    missing = records - _REAL_RECORDS * len(real)
    sizes[synthetic, 0] = missing // len(synthetic)
    sizes[synthetic[0], 0] += missing % len(synthetic)
    sizes[:, 1] = sizes[:, 0] * _NAME_BYTES
    for number in range(shards):
        path = folder / f"{number:06d}.tar"
        if number in real:
            _write_tar(path, number)
        else:
            path.touch()
            os.truncate(path, int(sizes[number, 0]) * _RECORD_BYTES)
    files = Files(list_files(str(folder / "*.tar")))
    parts = {number: scan(files, number) for number in real}
    for number, part in parts.items():
        sizes[number] = part.sizes
    facts = [
        parts[number].facts if number in real else Facts(members=int(sizes[number, 0])) for number in range(shards)
    ]
    place = cache_folder("tar-index") / f"{fingerprint(files)}.index"

    def fill(file: Writer) -> None:
        write_head(file, facts, sizes)
        for number, column_place in enumerate(column_places(file.tell(), sizes)):
            if number in real:
                write_part(file, parts[number], column_place)  # the last shard is real, so its part ends the content

    assert keep(place, fill)
    print(
        f"{sizes[:, 0].sum():,} records in {shards:,} shards; "
        f"the index is a sparse file of {place.stat().st_size / 1e9:.1f} GB, "
        f"of which {place.stat().st_blocks * 512 / 1e6:.1f} MB are allocated"
    )


def _write_tar(path: pathlib.Path, number: int) -> None:
    with tarfile.open(path, "w") as tar:
        for row in range(_REAL_RECORDS):
            for suffix, data in (("jpg", b"%d" % row * 200), ("txt", f"record {row} of shard {number}".encode())):
                member = tarfile.TarInfo(f"{row:012d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _measure(folder: pathlib.Path, shards: int, start_time: float) -> None:
    """The measurements, in the new process."""
    _report("modules imported", start_time)
    open_time = time.monotonic()
    source = TarShards(str(folder / "*.tar"))
    _report(f"{len(source):,} records open (in {time.monotonic() - open_time:.2f} s)", start_time)
    order = Shuffled(0, len(source))
    for step in _STEPS:
        ids, epochs = order(np.arange(step * _BATCH, (step + 1) * _BATCH))
        assert ids.min() >= 0 and ids.max() < len(source)
    _report(f"ids of {len(_STEPS)} batches of {_BATCH:,} at steps {_STEPS[0]} to {_STEPS[-1]:,} computed", start_time)
    ends = source._index.record_ends
    real = [int(ends[number]) - 1 - row for number in _real_shards(shards) for row in (0, 500, 999)]
    records = source.read(real)
    for number, record in zip(np.repeat(_real_shards(shards), 3), records, strict=True):
        assert isinstance(record, Record) and record.captions[0].endswith(f"of shard {number}")
    _report(f"{len(records)} records read, such as {records[0].key} {records[0].captions}", start_time)
    source.read(ids.tolist())
    _report(f"{len(ids):,} records spread over the index looked up", start_time)


def _report(message: str, start_time: float) -> None:
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    current, peak = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    print(f"{time.monotonic() - start_time:6.2f} s  RSS {current:5.0f} MiB (peak {peak:5.0f})  {message}", flush=True)


if __name__ == "__main__":
    main()
