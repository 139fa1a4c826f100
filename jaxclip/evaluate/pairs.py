"""Embedded images and captions of a data set, and how high each finds its own among the others."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jaxclip.data.record import Source
from jaxclip.data.skips import SkipLog
from jaxclip.encoder import EmbeddedSet, Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.evaluator import examples_digest
from jaxclip.evaluate.ranking import Ranks, ranks


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Different images that have captions, with all of them.

    Attributes:
      images: unit embeddings of the images.
      texts: unit embeddings of the captions.
      owners: for each caption, the row of its image.
      examples: the digest of the images with their captions; see `jaxclip.evaluate.examples_digest`.
      numbers: of the images' records in their source.
      captions: as they are in the data.
    """

    images: Float[np.ndarray, "images width"]
    texts: Float[np.ndarray, "captions width"]
    owners: Int[np.ndarray, "captions"]
    examples: str
    numbers: list[int]
    captions: list[str]

    def ranks(self, mesh: Mesh) -> Ranks:
        """As queries, of each image the rank of the best of its captions; as keys, of each caption its image's."""
        return ranks(mesh, self.images, self.texts, np.arange(len(self.images)), self.owners)


def embedded_pairs(encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prefix: str = "") -> Pairs:
    """Embeds a data set.

    Records of the same image are one image with the captions of all, as a table with a row for each caption has them:
    as different images, each would stand in the way of the others. Images without a caption are left out; those that
    cannot be read are counted in `skips`. `prefix` is put before each caption.

    Raises:
      UserError: no image has a caption, or none can be read.
    """
    embedded = encoder.source(variables, source, skips)
    captions = captions_of_images(embedded)
    if not captions:
        raise UserError(f"no record can be used: {skips}" if skips.total else "no image has a caption to retrieve")
    owners = np.array([index for index, lines in enumerate(captions.values()) for _ in lines])
    every = [line for lines in captions.values() for line in lines]
    texts = encoder.texts(variables, [prefix + line for line in every])
    examples = examples_digest([(embedded.digests[row], lines) for row, lines in captions.items()])
    numbers = [embedded.ids[row] for row in captions]
    return Pairs(embedded.outputs[[*captions]], texts, owners, examples, numbers, every)


def captions_of_images(embedded: EmbeddedSet) -> dict[int, list[str]]:
    """The captions of each different image that has any, by the row of its first record."""
    first: dict[str, int] = {}
    captions: dict[int, list[str]] = {}
    for row, (digest, lines) in enumerate(zip(embedded.digests, embedded.captions, strict=True)):
        if lines:
            captions.setdefault(first.setdefault(digest, row), []).extend(lines)
    return captions
