"""Parallel, resumable construction of the index of a set of tars in a cache folder."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import io
import pathlib
import random
import sys
from collections.abc import Iterator

import numpy as np
import tqdm

from jaxclip.data.index.checked import InMemory, Writer
from jaxclip.data.index.keep import keep
from jaxclip.data.index.tar import Facts, Part, TarIndex, write
from jaxclip.data.index.tar_scan import scan
from jaxclip.data.index.workers import run_workers, serve_worker
from jaxclip.data.storage import File, Files, cache_folder, fingerprint, is_remote
from jaxclip.errors import UserError

# Walking the headers is bound by the CPU, and Python runs only one thread at a time; for local files on a fast disk,
# only several processes are faster. Starting them takes half a second.
_WORTH_PROCESSES = 4 << 30  # bytes of tars
_THREADS = 8  # hide the latency of a disk
_REMOTE_THREADS = 32  # hide the latency of a network


def load_index(files: Files) -> TarIndex:
    """The index of tars: from the cache if the files are unchanged, otherwise built and added to the cache.

    The cache is `$JAXCLIP_CACHE/tar-index` (default: `~/.cache/jaxclip/tar-index`). Until the index is complete, the
    index of each tar is kept there separately, so that an interruption loses little. If the folder is not writable, the
    index is kept in memory.

    Raises:
      UserError: a file cannot be read or is not a tar.
    """
    folder = cache_folder("tar-index")
    place = folder / f"{fingerprint(files)}.index"
    index = TarIndex.open(place, len(files))
    return _Builder(files, folder / "parts").build(place) if index is None else index


class _Builder:
    """An index under construction: finished parts in a folder, or in memory if the folder is not writable."""

    def __init__(self, files: Files, folder: pathlib.Path):
        self._files, self._folder = files, folder
        self._unkept: dict[int, Part] = {}

    def build(self, place: pathlib.Path) -> TarIndex:
        """Indexes every file, and combines the parts in `place`."""
        facts, sizes = self._survey()
        index = TarIndex.open(place, len(self._files))
        if index is not None:  # another process has finished first and removed the parts
            self._clear()
            return index

        def fill(file: Writer) -> None:
            write(file, facts, sizes, map(self._part, range(len(self._files))))

        try:
            if keep(place, fill):
                index = TarIndex.open(place, len(self._files))
                if index is not None:
                    self._clear()
                    return index
            memory = io.BytesIO()
            fill(Writer(memory))
        except ValueError as error:
            raise UserError(
                f"{self._files[0].path} and those after it changed while they were indexed: {error}"
            ) from error
        return TarIndex(InMemory(memory.getvalue()))

    def _survey(self) -> tuple[list[Facts], np.ndarray]:
        """Indexes every file that is not indexed yet; returns the facts and sizes of the parts."""
        files = self._files
        facts, sizes = [Facts()] * len(files), np.zeros((len(files), 3), np.int64)
        with tqdm.tqdm(
            total=sum(file.size for file in files),
            desc="indexing tars",
            unit="B",
            unit_scale=True,
            delay=2,
            file=sys.stderr,
        ) as bar:
            done = self._survey_elsewhere(bar)
            remote = any(is_remote(file.path) for file in files)
            with concurrent.futures.ThreadPoolExecutor(max_workers=_REMOTE_THREADS if remote else _THREADS) as pool:
                running = {pool.submit(self._summary, number): number for number in _anyhow(range(len(files)))}
                try:
                    for future in concurrent.futures.as_completed(running):
                        number = running[future]
                        facts[number], sizes[number] = future.result()
                        bar.update(0 if number in done else files[number].size)
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        return facts, sizes

    def _survey_elsewhere(self, bar: tqdm.tqdm) -> set[int]:
        """Indexes local files in other processes if they have many bytes; returns the numbers of the finished files."""
        todo = [
            number
            for number in _anyhow(range(len(self._files)))
            if not is_remote(self._files[number].path) and not self._place(number).exists()
        ]
        done: set[int] = set()
        if len(todo) < 2 or sum(self._files[number].size for number in todo) < _WORTH_PROCESSES:
            return done

        def noted(place: int) -> None:
            done.add(todo[place])
            bar.update(self._files[todo[place]].size)

        command = [sys.executable, "-m", __name__, str(self._folder)]
        run_workers(command, [dataclasses.astuple(self._files[number]) for number in todo], noted)
        return done

    def serve(self) -> Iterator[int]:
        """Indexes one file after the other and yields their numbers; files with errors are left out."""
        for number in range(len(self._files)):
            with contextlib.suppress(UserError):
                self._part(number)
                if self._unkept:
                    return
                yield number

    def _summary(self, number: int) -> tuple[Facts, tuple[int, int, int]]:
        part = self._part(number)
        return part.facts, part.sizes

    def _part(self, number: int) -> Part:
        """The index of one file: the kept part, or a new one, which is kept."""
        if number in self._unkept:
            return self._unkept[number]
        place = self._place(number)
        index = TarIndex.open(place, 1, whole=True)
        if index is not None:
            return index.part()
        try:
            part = scan(self._files, number)
        except OSError as error:
            raise UserError(f"{self._files[number].path} cannot be read: {error.strerror or error}") from error
        if not keep(place, lambda file: write(file, [part.facts], np.array([part.sizes]), [part])):
            self._unkept[number] = part
        return part

    def _place(self, number: int) -> pathlib.Path:
        return self._folder / f"{fingerprint([self._files[number]])}.index"

    def _clear(self) -> None:
        with contextlib.suppress(OSError):
            for number in range(len(self._files)):
                self._place(number).unlink(missing_ok=True)
            self._folder.rmdir()  # unless another set is being indexed


def _anyhow(numbers: range) -> list[int]:
    """The numbers in random order, so that several processes that index the same files rarely work on the same one."""
    return random.sample(numbers, len(numbers))


if __name__ == "__main__":
    serve_worker(lambda files: _Builder(Files([File(*file) for file in files]), pathlib.Path(sys.argv[1])).serve())
