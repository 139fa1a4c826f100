"""Hostile .npz files: invalid zips, headers and contents of arrays."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator

from hostile_weights import DATA, Hostile, Touch, flipped, index, one, zipped


def npy(descr: str = "'<f4'", fortran: str = "False", shape: str = "(2, 3)", data: bytes = DATA[:24]) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n" + data


def npz(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    return zipped({f"{name}.npy": content for name, content in members.items()}, compression)


def patched(content: bytes, magic: bytes, offset: int, form: str, value: int) -> bytes:
    """A zip with another number in its first record of a kind."""
    place = content.index(magic) + offset
    return (
        content[:place]
        + struct.pack(form, value % (1 << 8 * struct.calcsize(form)))
        + content[place + struct.calcsize(form) :]
    )


def deflated(stream: bytes, content: bytes) -> bytes:
    """An .npz of one array, packed by somebody else."""
    file = zipped({"a.npy": stream})
    for offset, form, value in (
        (10, "<H", zipfile.ZIP_DEFLATED),
        (16, "<I", zlib.crc32(content)),
        (24, "<I", len(content)),
    ):
        file = patched(file, b"PK\1\2", offset, form, value)
    return file


DESCRS = [
    "'|O'", "'O'", "'|O8'", "[('a', '<f4')]", "[('a', '|O')]", "'<U6'", "'|S24'", "'<M8[s]'", "'<m8[s]'", "'<c8'",
    "'<f16'", "'|V1'", "'|V3'", "'|V4'", "'>V2'", "'<f1'", "'<f3'", "'<f0'", "'<f-4'", "'<f99999'", "'float32'", "''",
    "None", "4", "'<f4', 'descr': '|O'", "__import__('os').system('touch trap')", "open('trap', 'w')",
    "'<f4' if open('trap','w') else ''", "('<f4', (2,))", "{'names': ['a'], 'formats': ['<f4']}", "'<i3'", "'<b1x'",
    "\"<f4\"", "'(2,3)<f4'", "'<f4,<f4'",
]  # fmt: skip
SHAPES = [
    "()", "(6,)[0]", "(2, 4)", "(3,)", "(-2, -3)", "(2.0, 3)", "(True, 6)", "2, 3", "[2, 3]", "None", "(None,)",
    "('2', 3)", "((2, 3),)", "(" * 400 + ")" * 400, f"({1 << 62}, 4)", f"({1 << 63},)", f"({10**18}, {10**18})",
    f"({10**30},)", "(0,)", f"(0, {1 << 62}, {1 << 62})", "(" + "1, " * 33 + "6)", "(2 * 3,)", "(2, 3",
    "(2, 3) or exit()", "(0x6,)", "(6j,)", "(6L,)", "(1_000,)", "(2, 3),'shape': (2, 3)",
]  # fmt: skip
MEMBERS = [
    "../a.npy", "/a.npy", "a/../b.npy", "./a.npy", "a//b.npy", "a\\b.npy", "C:a.npy", "a", "a.npz", "a.pkl", ".npy",
    "a/", "", "a\n.npy", "\x1b[2J.npy", "a" * 600 + ".npy", "\u202ea.npy", "a/.npy", "..npy/../x.npy",
]  # fmt: skip


def arrays() -> Iterator[tuple[str, Hostile]]:
    def single(content: bytes, packed: bool = False) -> Hostile:
        return one(npz({"a": content}, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED), "model.npz")

    for packed in (False, True):
        way = "packed" if packed else "stored"
        for number, descr in enumerate(DESCRS):
            yield f"descr-{number}-{way}", single(npy(descr=descr), packed)
        for number, shape in enumerate(SHAPES):
            yield f"npy-shape-{number}-{way}", single(npy(shape=shape), packed)
        for number, fortran in enumerate(("1", "None", "'False'", "true", "False or exit()")):
            yield f"fortran-{number}-{way}", single(npy(fortran=fortran), packed)
        for size in (0, 1, 6, 8, 10, 40, 70, 80):
            yield f"npy-cut-{size}-{way}", single(npy()[:size], packed)
        for extra in (1, 24, 4096):
            yield f"npy-trailing-{extra}-{way}", single(npy() + bytes(extra), packed)
        for version in (b"\0\0", b"\3\0", b"\1\1", b"\xff\xff"):
            yield f"version-{version.hex()}-{way}", single(npy()[:6] + version + npy()[8:], packed)
        for length in (0, 1, 50, 1000, 65535):
            yield f"npy-length-{length}-{way}", single(npy()[:8] + struct.pack("<H", length) + npy()[10:], packed)
        long = b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + b"{" + b" " * 100_000
        yield f"npy-long-header-{way}", single(long, packed)
        objects = npy("'|O'", data=pickle.dumps([Touch()] * 6))
        yield f"objects-{way}", single(objects, packed)
        yield f"raw-pickle-{way}", single(pickle.dumps(Touch()), packed)


def zips() -> Iterator[tuple[str, Hostile]]:
    stored, packed = (npz({"a": npy(), "b": npy()}, way) for way in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    for size in range(4, len(stored), 13):
        yield f"npz-cut-{size}", one(stored[:size], "model.npz")
    for number, name in enumerate(MEMBERS):
        yield f"member-{number}", one(zipped({name: npy()}), "model.npz")
    yield "member-nul", one(zipped({"aaaaa.npy": npy()}).replace(b"aaaaa.npy", b"a.npy\0bcd"), "model.npz")
    yield "member-twice", one(zipped({"aa.npy": npy(), "ab.npy": npy()}).replace(b"ab.npy", b"aa.npy"), "model.npz")
    yield "npz-objects-beside", one(npz({"a": npy(), "b": npy("'|O'", data=pickle.dumps(Touch()))}), "model.npz")
    central, local, end = b"PK\1\2", b"PK\3\4", b"PK\5\6"
    for way, content in (("stored", stored), ("packed", packed)):
        for field, offset, form, values in (
            ("flags", 8, "<H", (0x1, 0x41)),
            ("method", 10, "<H", (1, 6, 9, 12, 14, 93, 95, 99, 0xFFFF)),
            ("packed", 20, "<I", (0, 1, 10, 1 << 16, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)),
            ("size", 24, "<I", (0, 1, 10, 1 << 16, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)),
            ("name", 28, "<H", (0, 1, 4, 6, 100, 0xFFFF)),
            ("extra", 30, "<H", (1, 100, 0xFFFF)),
            ("place", 42, "<I", (1, 30, 1 << 16, 0x7FFFFFFF, 0xFFFFFFFE)),
        ):
            for value in values:
                yield f"{way}-{field}-{value}", one(patched(content, central, offset, form, value), "model.npz")
        for offset, form, value in ((26, "<H", 4), (26, "<H", 0xFFFF), (28, "<H", 1), (28, "<H", 0xFFFF), (0, "<I", 0)):
            yield f"{way}-local-{offset}-{value}", one(patched(content, local, offset, form, value), "model.npz")
        for offset, value in ((12, 1), (12, 0x7FFFFFFF), (12, 0xFFFFFFFE), (16, 0x7FFFFFFF), (16, 0xFFFFFFFE)):
            yield f"{way}-end-{offset}-{value}", one(patched(content, end, offset, "<I", value), "model.npz")
        yield f"{way}-other-method", one(patched(content, central, 10, "<H", 8 if way == "stored" else 0), "model.npz")
        # Both entries name the first member.
        entries = content[content.index(central) :].split(central)
        quoted = entries[1] + central + entries[2][: 42 - 4] + struct.pack("<I", 0) + entries[2][46 - 4 :]
        yield f"{way}-quoted", one(content[: content.index(central)] + central + quoted, "model.npz")
    pack = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    stream = pack.compress(npy()) + pack.flush(zlib.Z_SYNC_FLUSH)
    yield "deflate-without-end", one(deflated(stream, npy()), "model.npz")
    yield "deflate-and-more", one(deflated(stream + pack.flush() + b"more", npy()), "model.npz")
    yield "other-name", one(stored.replace(b"a.npy", b"c.npy", 1), "model.npz")
    # An array whose values are another member, which the directory names too.
    inner = npz({"b": npy()})
    inner = inner[: inner.index(central)]
    outer = npz({"a": npy("'|u1'", shape=f"({len(inner)},)", data=inner), "b": npy()})
    entry = outer.rindex(central)
    place = struct.pack("<I", outer.index(inner))
    yield "member-in-member", one(outer[: entry + 42] + place + outer[entry + 46 :], "model.npz")
    yield "crc", one(patched(packed, central, 16, "<I", 1), "model.npz")
    yield "npz-hole", one(stored, "model.npz", hole=1 << 29)
    for power in (20, 23, 29, 30):
        # A directory of the hole's length, in the place of the hole.
        record = struct.pack("<4s4H2IH", end, 0, 0, 1, 1, 1 << power, len(stored), 0)
        yield f"npz-directory-{power}", one(stored, "model.npz", hole=1 << power, tail=record)
    yield "npz-trailing", one(stored + bytes(100_000), "model.npz")
    many = zipped({f"{n}.npy": b"" for n in range(20_000)})
    yield "npz-many", one(many, "model.npz")
    bomb = npz({"a": npy(shape="(300000000,)", data=bytes(1 << 20))}, zipfile.ZIP_DEFLATED)
    yield "bomb-shape", one(bomb, "model.npz")
    yield "bomb-size", one(patched(bomb, central, 24, "<I", 1_200_000_000 + 80), "model.npz")
    zeros = npy(shape="(1048576,)", data=bytes(4 << 20))
    yield "bomb-of-many", one(npz({str(n): zeros for n in range(70)}, zipfile.ZIP_DEFLATED), "model.npz")
    more = npz({"a": npy(data=bytes(8 << 20))}, zipfile.ZIP_DEFLATED)
    yield "bomb-behind", one(patched(more, central, 24, "<I", len(npy())), "model.npz")
    yield "shard-npz", index({"a": "x.safetensors"}, {"x.safetensors": stored})


def flips() -> Iterator[tuple[str, Hostile]]:
    for way in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        for number, content in enumerate(flipped(npz({"a": npy(), "b": npy()}, way), 150)):
            yield f"npz-flip-{way}-{number}", one(content, "model.npz", refused=False)


def hostile() -> Iterator[tuple[str, Hostile]]:
    """All of them, each with a name of its own."""
    for family in (arrays, zips, flips):
        yield from family()
