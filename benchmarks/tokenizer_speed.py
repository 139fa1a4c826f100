"""python benchmarks/tokenizer_speed.py VOCABULARY --peer-python=PATH [--identity]: tokenizer speed and equality of ids.

Compares CLIP's tokenizer with open_clip's SimpleTokenizer, which runs in the Python at PATH (with open_clip_torch). The
two alternate in one run. VOCABULARY is OpenAI's bpe_simple_vocab_16e6.txt.gz, which is part of open_clip. With
--identity, the ids of a million generated strings are compared instead: captions, emoji, CJK, entities and noise.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np

CONTEXT = 77
BATCH = 256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary", help="OpenAI's bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("--peer-python", required=True, help="a Python in which open_clip can be imported")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--captions", type=int, default=51200, help="per round; every round has new captions")
    parser.add_argument("--identity", action="store_true", help="compare ids instead of speeds")
    parser.add_argument("--strings", type=int, default=1_000_000, help="to compare")
    arguments = parser.parse_args()
    from jaxclip.data import tokenizers

    tokenizer = tokenizers.load(arguments.vocabulary)
    words = english(tokenizer)
    with Peer(arguments.peer_python) as peer:
        if arguments.identity:
            return compare(tokenizer, peer, source=odd_strings(words), count=arguments.strings)
        measure(
            tokenizer,
            peer,
            source=captions(words, seed=0),
            rounds=arguments.rounds,
            batches=arguments.captions // BATCH,
        )
        return 0


class Peer:
    """open_clip's tokenizer in another process, which receives lines of JSON and returns binary numbers."""

    def __init__(self, python: str):
        # Runs this file by its path, because the other Python may not have jaxclip.
        self._process = subprocess.Popen(
            [python, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def __call__(self, texts: Sequence[str]) -> tuple[float, np.ndarray]:
        """The time in seconds, and the ids, int32 [n, context]."""
        self._process.stdin.write(json.dumps(texts).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.read(8 + 4 * CONTEXT * len(texts))
        if len(answer) < 8:
            sys.exit("the peer's Python cannot run open_clip's tokenizer")
        return struct.unpack("<d", answer[:8])[0], np.frombuffer(answer, "<i4", offset=8).reshape(-1, CONTEXT)


def serve() -> None:
    """The main loop of the other process."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # for whatever imports print
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    for line in sys.stdin.buffer:
        texts = json.loads(line)
        start_time = time.perf_counter()
        ids = tokenizer(texts, CONTEXT)
        seconds = time.perf_counter() - start_time
        out.write(struct.pack("<d", seconds) + ids.numpy().astype("<i4").tobytes())
        out.flush()


def measure(tokenizer: Callable, peer: Peer, source: Iterator[str], rounds: int, batches: int) -> None:
    """Prints the captions per second of both tokenizers, with new captions in every round."""
    cores = os.cpu_count() or 1
    rates: dict[str, list[float]] = {
        "jaxclip, 1 thread": [],
        f"jaxclip, {cores} threads": [],
        "open_clip, 1 thread": [],
    }
    one, all_cores, other = rates.values()
    for _ in range(rounds):
        texts = [[next(source) for _ in range(BATCH)] for _ in range(batches)]
        start_time = time.perf_counter()
        for batch in texts:
            tokenizer(batch, CONTEXT)
        one.append(batches * BATCH / (time.perf_counter() - start_time))
        # New captions again, because the words of the previous ones are in the cache.
        texts = [[next(source) for _ in range(BATCH)] for _ in range(batches)]
        with concurrent.futures.ThreadPoolExecutor(cores) as pool:
            start_time = time.perf_counter()
            list(pool.map(lambda batch: tokenizer(batch, CONTEXT), texts))
            all_cores.append(batches * BATCH / (time.perf_counter() - start_time))
        other.append(batches * BATCH / sum(peer(batch)[0] for batch in texts))
    print(f"captions per second, {rounds} rounds of {batches * BATCH:,} new captions in batches of {BATCH}")
    print(f"{'':<22}{'first':>10}{'median':>10}{'best':>10}")
    for name, values in rates.items():
        print(f"{name:<22}{values[0]:>10,.0f}{statistics.median(values):>10,.0f}{max(values):>10,.0f}")
    ratios = [rate / peer_rate for rate, peer_rate in zip(one, other, strict=True)]
    print(f"1 thread against 1: {statistics.median(ratios):.1f} times (from {min(ratios):.1f} to {max(ratios):.1f})")


def compare(tokenizer: Callable, peer: Peer, source: Iterator[str], count: int) -> int:
    """Prints strings whose ids differ; returns 1 if there are any.

    Strings that are repaired into characters unassigned in this Python's Unicode are counted separately, because
    regular expression libraries of different releases disagree on whether these are letters.
    """
    from jaxclip.data.tokenizers.cleaning import repaired_pieces

    wrong = unknown = done = 0
    while done < count:
        texts = [next(source) for _ in range(min(BATCH, count - done))]
        done += len(texts)
        differ = (tokenizer(texts, CONTEXT)[0] != peer(texts)[1]).any(axis=1)
        for text in [text for text, other in zip(texts, differ, strict=True) if other]:
            if any(unicodedata.category(c) == "Cn" for c in "".join(repaired_pieces(text))):
                unknown += 1
            else:
                wrong += 1
                print(f"differs: {text!a}", flush=True)
        if sys.stderr.isatty():
            print(f"\r{done:,} strings, {wrong:,} differ", end="", file=sys.stderr)
    print(f"{done:,} strings, {wrong:,} with other ids, and {unknown:,} in which repairs make unassigned characters")
    return int(wrong > 0)


def english(tokenizer: Callable) -> list[str]:
    """The vocabulary's words, the most frequent first, as BPE merges them in that order."""
    words = (tokenizer.decode([i]) for i in range(512, tokenizer.vocab_size - 2))
    return [word for word in words if word.isalpha() and word.isascii() and len(word) > 1]


def captions(words: list[str], seed: int) -> Iterator[str]:
    """Endless captions like those of the web: words by Zipf's law, names, numbers; one in ten is not ASCII."""
    rng = random.Random(seed)
    weights = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(words))))
    others = [
        "\u2019s",
        "\u2013",
        "caf\u00e9",
        "\u201cnew\u201d",
        "&amp;",
        "\u00a9",
        "M\u00fcnchen",
        "\u2026",
        "\u2764",
    ]

    def name() -> str:
        return "".join(rng.choices(words, k=2)).capitalize()

    while True:
        text = rng.choices(words, cum_weights=weights, k=rng.randint(4, 16))
        if rng.random() < 0.3:
            text.insert(rng.randint(0, len(text)), name())
        if rng.random() < 0.2:
            text.insert(rng.randint(0, len(text)), str(rng.randint(0, 2030)))
        if rng.random() < 0.1:
            text.insert(rng.randint(0, len(text)), rng.choice(others))
        if rng.random() < 0.3:
            text[rng.randrange(len(text))] += rng.choice([",", "'s", " -", ":", "!"])
        line = " ".join(text)
        yield rng.choice([line, line.capitalize(), line.capitalize() + ".", line.title()])


def odd_strings(words: list[str]) -> Iterator[str]:
    """Endless strings for finding differences: mixtures of captions and noise, without unassigned characters."""
    rng = random.Random(1)
    assigned = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) != "Cn"]
    plain = captions(words, seed=2)

    def some(*ranges: tuple[int, int]) -> Callable[[], str]:
        codes = itertools.chain.from_iterable(itertools.starmap(range, ranges))
        letters = [chr(code) for code in codes if unicodedata.category(chr(code)) != "Cn"]
        return lambda: "".join(rng.choices(letters, k=rng.randint(1, 8)))

    def entity() -> str:
        inner = rng.choice(
            ["amp", "lt", "gt", "quot", "nbsp", "eacute", "EACUTE", "hellip", "#39", "#x1F602", "notit", "#0"]
        )
        return rng.choice(["&", "&", "&amp;", "&amp;amp;"]) + inner + rng.choice([";", ";", "", " "])

    def mojibake() -> str:
        return (
            rng.choice(["\u00e9", "\u201cso\u201d", "\u2019", "\u00e0 ", "\U0001f602", "\u65e5"])
            .encode()
            .decode(rng.choice(["latin-1", "cp1252", "cp437", "macroman"]), "replace")
        )

    parts = [
        lambda: next(plain),
        lambda: (
            rng.choice(words) + rng.choice(["\u0301", "\u0308\u0327", "\u200d", "\u0345", "\ufe0f"]) + rng.choice(words)
        ),
        entity,
        mojibake,
        some((0, 128)),
        some((0x20, 0x7F)),
        some((0x80, 0x250)),
        some((0x2010, 0x2040), (0xC0, 0x100), (0x20, 0x40)),
        some((0x370, 0x400), (0x400, 0x500), (0x1E00, 0x1F00)),
        some((0x590, 0x700), (0x900, 0xA00), (0xE00, 0xE80)),
        some((0x300, 0x370), (0x61, 0x7B)),
        some((0x2000, 0x2070), (0x9, 0xE), (0x1C, 0x21), (0x85, 0x86), (0xA0, 0xA1), (0x3000, 0x3001), (0x61, 0x6B)),
        some((0x3040, 0x3100), (0x4E00, 0x9F00), (0xAC00, 0xD7A0)),
        some((0xFB00, 0xFB07), (0xFF00, 0xFFEF)),
        some((0x1F300, 0x1F650), (0x1F1E6, 0x1F200), (0x200D, 0x200E), (0xFE0F, 0xFE10), (0x1F3FB, 0x1F400)),
        some((0x2100, 0x2800), (0x1D400, 0x1D500)),
        some((0xD83C, 0xD83E), (0xDC00, 0xE000), (0xE000, 0xE010), (0xFFF0, 0x10000)),
        lambda: rng.choice(assigned),
        lambda: "".join(rng.choices(words, k=rng.randint(2, 9))),
        lambda: rng.choice(["http://", "www.", "#", "@", "IMG_"]) + "-".join(rng.choices(words, k=3)) + "/?a=1&b=2",
        lambda: rng.choice(
            ["it's", "WE'LL", "'S", "''s", "I'\u017f", "'\u017f", "\u0130", "\u1e9e", "\u039f\u03a3", "\u01c5"]
        ),
    ]
    while True:
        kind = rng.random()
        if kind < 0.3:
            yield next(plain)
        elif kind < 0.32:
            yield rng.choice(["", " ", "\t"]).join(rng.choice(parts)() for _ in range(rng.randint(50, 150)))
        else:
            yield rng.choice(["", " ", " ", "  "]).join(rng.choice(parts)() for _ in range(rng.randint(1, 6)))


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        sys.exit(main())
