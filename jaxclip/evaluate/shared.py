"""Encodings of images that several evaluations of one model share, in memory and on request on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxclip
from jaxclip import methods
from jaxclip.checkpoint.fingerprint import fingerprints
from jaxclip.data.loader import read_ahead
from jaxclip.data.record import Record, Source, caption_lines, image_digest
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import Batch, EmbeddedSet, Encoder, gather
from jaxclip.errors import UserError
from jaxclip.parsing import to_dict
from jaxclip.progress import counted

# Functions of one image that a vector is kept of.
FUNCTIONS = ("encode_image", "features")
_PROBED = 64


class _Facts(NamedTuple):
    """What a record says beside its image."""

    position: int
    label: int | None
    tags: tuple[int, ...] | None
    captions: list[str]
    digest: str


class SharedEncoder(Encoder):
    """An encoder that computes the vectors of an image once, however many evaluations ask for them.

    They are found again by the digest of the image, so that captions and labels are always those of the source that is
    read, and a set of which some images are known costs the others. What was kept on disk is not held in memory.

    Args:
      encoder: what computes them; its compiled functions are used.
      variables: of the model; for others nothing is shared.
      needed: names of functions that will be asked for. Those of `FUNCTIONS` are computed in one pass.
      folder: where vectors are kept; None for memory alone. Then all of `FUNCTIONS` that the model has are computed.
      shows: whether the progress of each set is shown.

    Raises:
      UserError: there is a folder, and the model has no images.
    """

    def __init__(
        self,
        encoder: Encoder,
        variables: Any,
        needed: Collection[str] = (),
        folder: pathlib.Path | None = None,
        shows: bool = False,
    ):
        vars(self).update(vars(encoder))
        self._shared = tuple(name for name in FUNCTIONS if self.has(name) and (folder or name in needed))
        self._variables = variables
        self._shows = shows and jax.process_index() == 0
        self._parts: list[dict[str, np.ndarray]] = []
        self._places: dict[str, tuple[int, int]] = {}
        self._folder = folder / self._key() if folder else None
        if self._folder:
            self._read(self._folder)

    def source(
        self,
        variables: Any,
        source: Source,
        skips: SkipLog,
        ids: Sequence[int] | None = None,
        function: str | tuple[str, ...] = "encode_image",
        **options: Any,
    ) -> EmbeddedSet:
        """As `Encoder.source`; vectors of `FUNCTIONS` are float32."""
        if not isinstance(function, str) or options or variables is not self._variables or function not in self._shared:
            return super().source(variables, source, skips, ids, function, **options)
        self._image_input()
        ids = range(len(source)) if ids is None else ids
        known = self._known(source, ids)
        taken = {facts.position for facts in known}
        missing = [position for position in range(len(ids)) if position not in taken]
        if known and not missing:
            return self._with(EmbeddedSet([], None, [], [], [], []), known, ids, function)
        fresh = super().source(variables, source, skips, [ids[position] for position in missing], self._shared)
        outputs = {name: np.asarray(rows, np.float32) for name, rows in fresh.outputs.items()}
        self._keep(outputs, fresh.digests)
        fresh = dataclasses.replace(fresh, outputs=outputs[function])
        return self._with(fresh, known, ids, function) if known else fresh

    def batches(self, source: Source, skips: SkipLog, ids: Sequence[int]) -> Iterator[Batch]:
        """As `Encoder.batches`."""
        found = super().batches(source, skips, ids)
        return counted(found, len(ids), self.batch_size, "images") if self._shows else found

    def _known(self, source: Source, ids: Sequence[int]) -> list[_Facts]:
        """The records of known images, in order; the same in every process."""
        spread = range(0, len(ids), max(1, len(ids) // _PROBED))
        # Of a set that was never encoded nothing is known, which a few records tell. Processes may have other disks.
        if not all(gather(bool(self._places))) or not self._facts(source, ids, spread):
            return []
        return self._facts(source, ids, range(len(ids)))

    def _facts(self, source: Source, ids: Sequence[int], positions: Sequence[int]) -> list[_Facts]:
        mine = positions[jax.process_index() :: jax.process_count()]

        def look(record: Record, _: int) -> tuple:
            digest = image_digest(record.image)
            return record.label, record.tags, caption_lines(record.captions), digest

        # What cannot be read is counted when it is to be encoded.
        read = read_ahead(source, [ids[position] for position in mine], look, SkipLog())
        here = [(position, *made) for position, (_, made) in zip(mine, read, strict=True) if made]
        everywhere = sorted(tuple(one) for part in gather(here) for one in part)
        known = [position for position, *_, digest in everywhere if digest in self._places]
        common = set(known).intersection(*gather(known))
        return [
            _Facts(position, label, None if tags is None else tuple(tags), captions, digest)
            for position, label, tags, captions, digest in everywhere
            if position in common
        ]

    def _with(self, fresh: EmbeddedSet, known: Sequence[_Facts], ids: Sequence[int], function: str) -> EmbeddedSet:
        """What was encoded now together with what is known, in the order of the ids."""
        position_of = {record_id: position for position, record_id in enumerate(ids)}
        positions = [position_of[record_id] for record_id in fresh.ids]
        columns = zip(positions, fresh.labels, fresh.tags, fresh.captions, fresh.digests, strict=True)
        facts = sorted([*known, *(_Facts(*row) for row in columns)])
        rows = self._vectors([one.digest for one in facts], function)
        return EmbeddedSet(
            ids=[ids[one.position] for one in facts],
            outputs=rows,
            labels=[one.label for one in facts],
            tags=[one.tags for one in facts],
            captions=[one.captions for one in facts],
            digests=[one.digest for one in facts],
        )

    def _vectors(self, digests: Sequence[str], function: str) -> np.ndarray:
        places = np.array([self._places[digest] for digest in digests])
        rows = np.empty((len(digests), self._parts[places[0, 0]][function].shape[1]), np.float32)
        for number in np.unique(places[:, 0]):
            of_part = places[:, 0] == number
            rows[of_part] = self._parts[number][function][places[of_part, 1]]
        return rows

    def _add(self, part: dict[str, np.ndarray], digests: Sequence[str]) -> None:
        for row, digest in enumerate(digests):
            self._places.setdefault(digest, (len(self._parts), row))
        self._parts.append(part)

    def _keep(self, part: dict[str, np.ndarray], digests: Sequence[str]) -> None:
        if not digests:
            return
        self._add(part, digests)
        if self._folder is None or jax.process_index() != 0:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Complete or not there at all.
            place = pathlib.Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
            try:
                for name, rows in part.items():
                    np.save(place / f"{name}.npy", rows)
                np.save(place / "digests.npy", np.array(digests, "S"))
                place.rename(self._folder / place.name.removeprefix("."))
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
        except OSError as error:
            raise UserError(
                f"--keep-embeddings: {self._folder}: {error.strerror}; free some space, or leave it out"
            ) from None

    def _read(self, folder: pathlib.Path) -> None:
        for place in sorted(folder.glob("[!.]*")):
            # What is damaged is computed again.
            with contextlib.suppress(OSError, ValueError, EOFError, KeyError):
                part = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in self._shared}
                digests = [digest.decode() for digest in np.load(place / "digests.npy")]
                if all(len(rows) == len(digests) for rows in part.values()):
                    self._add(part, digests)

    def _key(self) -> str:
        """What the vectors depend on beside the images, as the name of a folder."""
        image = self._image_input()
        depends = {
            "version": jaxclip.__version__,
            "weights": weights_digest(self._variables),
            "method": methods.to_config(self.method),
            "size": image.size,
            "pixels": to_dict(image.pixels),
            "dtype": np.dtype(self._ctx.dtype).name,
        }
        return _digest(depends)


def weights_digest(variables: Any) -> str:
    """A digest of a model's variables, the same on any mesh; every process has to call this."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    arrays = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return _digest(fingerprints(arrays))


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()
