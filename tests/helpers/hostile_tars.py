"""Malicious and damaged tars: over two hundred, generated deterministically."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import zipfile
from collections.abc import Iterator

import numpy as np
from tar_files import header, member, pax

END = bytes(1024)
GOOD = member(b"good.jpg", b"!") + member(b"good.txt", b"a good one")
# A record whose members a walk reaches if it misses the ones before.
HIDDEN = member(b"hidden.jpg", b"?") + member(b"hidden.txt", b"hidden")
EXABYTES = 8 << 60
TRAP = "trap"  # a file in the working directory, which must not come to be


class Touch:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return open, (TRAP, "w")


def base256(number: int) -> bytes:
    return (number % (1 << 96)).to_bytes(12, "big") if number < 0 else b"\x80" + number.to_bytes(11, "big")


def names() -> Iterator[tuple[str, bytes]]:
    """Names that lead out of a folder, or that no file can have."""
    for number, name in enumerate(
        [b"../x.jpg", b"../../../../x.jpg", b"/x.jpg", b"//x.jpg", b"a/../../x.jpg", b"..\\..\\x.jpg", b"C:\\x.jpg"]
        + [TRAP.encode() + b".jpg", b"../" * 30 + b"x.jpg", b"./.jpg", b"...jpg", b"/.jpg", b"/", b"", b".", b".."]
        + [b"CON.jpg", b"x.jpg/", b"x.jpg/.", b"\\\\host\\x.jpg", b"file:///x.jpg", b"$(touch x).jpg", b"`id`.jpg"]
        + [b"\xff\xfe\xfd.jpg", b"\xc3\x28.jpg", b"\xed\xa0\x80.jpg", b"\x1b]0;x\x07.jpg", b"a\nb.jpg", b"a\rb.jpg"]
        + [b"\xe2\x80\xae.gpj", b"a\tb.jpg", b"%s%n%d.jpg", b"{0.__class__}.jpg", b"x" * 100, b"." * 100, b"/" * 99]
    ):
        yield f"name-{number}", GOOD + member(name, b"data") + member(name.replace(b"jpg", b"txt"), b"text") + END
    for depth in (10, 500, 2000, 5000, 200_000):
        path = b"d/" * depth + b"x.jpg"
        yield f"deep-{depth}", GOOD + pax(path=path) + member(b"x", b"!") + END
        yield f"deep-gnu-{depth}", GOOD + member(b"L", path + b"\0", b"L") + member(b"x", b"!") + END


def kinds() -> Iterator[tuple[str, bytes]]:
    """Links, devices, pipes, and unknown kinds."""
    for kind in b"123456789ADIMNSVXZ\xff\x01 ":
        for size in (0, 5, 0o77777777777):
            link = header(b"l.jpg", size, bytes([kind]), at_157=b"/etc/passwd")
            yield f"kind-{kind}-{size}", GOOD + link + HIDDEN + END


def sizes() -> Iterator[tuple[str, bytes]]:
    """Sizes that are negative, huge, not numbers or false."""
    fields = [base256(number) for number in (-1, -512, -(1 << 62), EXABYTES, (1 << 63) - 1, (1 << 87) - 1, 1 << 40)]
    fields += [
        b"77777777777\0",
        b"777777777777",
        b"-0000000001\0",
        b"+0000000001\0",
        b"0x000000001\0",
        b"1e9\0\0\0\0\0\0\0\0\0",
    ]
    fields += [b"0o000000017\0", b"1_000_000_00", b"\xff" * 12, b"\xc0" + bytes(11), b"            ", b"00000000009\0"]
    for number, field in enumerate(fields):
        for kind in (b"0", b"x", b"L", b"g"):
            yield f"size-{number}-{kind.decode()}", GOOD + header(b"x.jpg", field, kind) + HIDDEN + END
    for size in (1, 511, 513, 1024, 4096, 1 << 20):
        yield f"lie-{size}", GOOD + header(b"x.jpg", size) + HIDDEN + END
    for number, said in enumerate(
        ["-1", "0", "1e3", str(EXABYTES), "9" * 30, "", " 5", "0x5", "5.0", "\u0665", "9" * 5000]
    ):
        yield f"pax-size-{number}", GOOD + pax(size=said) + member(b"x.jpg", b"12345") + HIDDEN + END


def extended() -> Iterator[tuple[str, bytes]]:
    """Extended headers that are long, many, broken, or never followed by a member."""
    for length in (4097, 65536, (1 << 20) - 100, 1 << 20, (1 << 20) + 1, 1 << 22):
        yield f"pax-name-{length}", GOOD + pax(path="n" * length) + member(b"x.jpg", b"!") + HIDDEN + END
        yield f"gnu-name-{length}", GOOD + member(b"L", b"n" * length, b"L") + member(b"x.jpg", b"!") + HIDDEN + END
        yield f"gnu-link-{length}", GOOD + member(b"K", b"n" * length, b"K") + member(b"x.jpg", b"!") + HIDDEN + END
    for number, payload in enumerate(
        [
            b"",
            b"\0" * 600,
            b"9 path=x",
            b"99999999 path=x\n",
            b"0 path=x\n",
            b"-9 path=x\n",
            b"1 \n" * 300,
            b"4 =\n" * 50_000,
        ]
        + [b"path=x\n", b"9999999999999 path=x\n", b"12 path=\xff\xfe\n", b"\xb2 path=x\n", b"10 path=\0\n", b" " * 512]
    ):
        yield f"pax-broken-{number}", GOOD + member(b"P", payload, b"x") + member(b"x.jpg", b"!") + END
    for kind in (b"x", b"g", b"L", b"K"):
        yield f"chain-{kind.decode()}", GOOD + header(b"c", 0, kind) * 20_000
        yield f"chain-full-{kind.decode()}", GOOD + member(b"c", b"10 path=y\n", kind) * 5000 + HIDDEN + END
        yield f"last-{kind.decode()}", GOOD + member(b"c", b"10 path=y\n", kind) + END
    for number, sparse in enumerate(
        [
            header(b"s.jpg", 5, b"S", at_482=b"\1") + b"\1" * 512 * 1000,
            header(b"s.jpg", 0o77777777777, b"S", at_482=b"\1") + bytes(512),
            header(b"s.jpg", 5, b"S", at_483=base256(EXABYTES)) + bytes(512),
            pax(GNU__sparse__major="1", GNU__sparse__realsize=str(EXABYTES)) + member(b"s.jpg", b"5\n0\n1\n"),
            pax(GNU__sparse__map="0,1," * 10_000, GNU__sparse__size="-1") + member(b"s.jpg", b"!"),
        ]
    ):
        yield f"sparse-{number}", GOOD + sparse + HIDDEN + END


def contents() -> Iterator[tuple[str, bytes]]:
    """Members that are programs, or that are many, or all the same."""
    payload = pickle.dumps(Touch())
    for suffix in (
        b"pkl",
        b"pickle",
        b"pyd",
        b"py",
        b"so",
        b"pth",
        b"npy",
        b"pt",
        b"exe",
        b"jpg",
        b"txt",
        b"json",
        b"cls",
    ):
        yield f"pickle-{suffix.decode()}", GOOD + member(b"p." + suffix, payload) + member(b"p.jpg", b"!") + END
    for number, text in enumerate(
        [b'{"caption": ' * 50_000, b'{"caption": NaN}', b'{"caption":' + b"9" * 5000 + b"}", b"\xff\xfe{"]
    ):
        yield f"json-{number}", GOOD + member(b"j.jpg", b"!") + member(b"j.json", text) + END
    yield "same-name", GOOD + (member(b"x.jpg", b"!") + member(b"x.txt", b"x")) * 2000 + END
    yield "same-image", GOOD + member(b"x.jpg", b"!") * 5000 + END
    yield "same-as-good", GOOD * 2000 + END
    yield "empty-members", GOOD + b"".join(header(b"%d.jpg" % n) for n in range(5000)) + END
    yield "empty-names", GOOD + header(b"") * 5000 + END
    yield "extensions", GOOD + b"".join(header(b"x.%d\n\x1b" % n) for n in range(1000)) + END


def disguised() -> Iterator[tuple[str, bytes]]:
    """What is no tar at all, or a compressed one."""
    tar = GOOD + END
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("../x.jpg", tar)
    others = [gzip.compress(tar), bz2.compress(tar), lzma.compress(tar), packed.getvalue(), b"\x28\xb5\x2f\xfd" + tar]
    others += [b"\x7fELF" + tar, b"MZ" + tar, b"#!/bin/sh\ntouch x\n" + tar, b"<html>" + tar, b"\x89PNG\r\n" + tar]
    others += [gzip.compress(bytes(1 << 24)), b"\xff" * 5120, b" " * 5120, b"", b"\0", b"\0" * 511, b"\0" * 5120]
    for number, data in enumerate(others):
        yield f"disguised-{number}", data


def damaged() -> Iterator[tuple[str, bytes]]:
    """A sound tar that is cut, or of which bits are flipped."""
    sound = GOOD + b"".join(
        pax(path=f"{n}.jpg") + member(b"x", b"!" * 700) + member(b"%d.txt" % n, b"t") for n in range(4)
    )
    rng = np.random.default_rng(0)
    for number in range(30):
        yield f"cut-{number}", sound[: rng.integers(len(sound))]
        flipped = bytearray(sound + END)
        for place in rng.integers(len(flipped), size=1 + 4 * number):
            flipped[place] ^= 1 << rng.integers(8)
        yield f"flipped-{number}", bytes(flipped)
    for number in range(0, len(sound), 512):
        yield (
            f"checksum-{number}",
            sound[:number] + header(b"x.jpg", 1)[:148] + b"1234567\0" + bytes(356) + sound[number:],
        )


FAMILIES = (names, kinds, sizes, extended, contents, disguised, damaged)
ARCHIVES = {name: data for family in FAMILIES for name, data in family()}
