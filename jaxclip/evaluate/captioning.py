"""Captions that a model generates, against those of the data (Desai and Johnson 2021, section 4.4)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from jaxclip import evaluate
from jaxclip.config import check_at_least
from jaxclip.data.images.crops import prepare
from jaxclip.data.images.decode import open_image
from jaxclip.data.record import Record, Source
from jaxclip.data.skips import SkipLog
from jaxclip.data.tokenizers import Tokenizer, generated_text
from jaxclip.encoder import EmbeddedSet, Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.caption_metrics import bleu, cider, words
from jaxclip.evaluate.lit import enlarged, lit_words
from jaxclip.evaluate.pairs import captions_of_images

_EXAMPLES = 10


@dataclasses.dataclass(frozen=True)
class Evaluator(evaluate.Evaluator):
    """CIDEr and BLEU of generated captions, and how many of them are a caption of the data or name the image's class.

    Attributes:
      beams, per_beam: of the beam search; VirTex's by default. See `towers.generation.beam_search`.
      nucleus: if above 0, captions are drawn by nucleus sampling with this share instead.
      seed: of the draws.
    """

    needs: ClassVar[tuple[str, ...]] = ("caption",)

    beams: int = 5
    per_beam: int = 2
    nucleus: float = 0.0
    seed: int = 0

    def __post_init__(self):
        check_at_least(self, 1, "beams", "per_beam")
        check_at_least(self, 0, "seed")
        if not 0 <= self.nucleus <= 1:
            raise UserError(f"nucleus={self.nucleus} must be at least 0 (for beam search) and at most 1")

    def lacks(self, record: Record, prepared: Any) -> str:
        """Why a record cannot be evaluated."""
        return "" if record.captions else "no caption"

    def run(self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: Any) -> evaluate.Result:
        """The metrics, and ten captions with what each of their words was attending to.

        `cider` and `bleu_1` to `bleu_4` are of the whole set; `exact_match` is the share of the captions whose words
        are those of a caption of the data; `names_class` the share that have the name of the image's class, None if the
        data has no classes. Records of the same image are one image; images without a caption are left out.

        Raises:
          UserError: no image has a caption; the vocabulary has no start or end.
        """
        tokenizer = encoder.tokenizer
        if tokenizer is None or tokenizer.start_id is None or tokenizer.end_id is None:
            raise UserError("captions need a vocabulary with a start and an end token")
        how: dict[str, Any] = {"start": tokenizer.start_id, "end": tokenizer.end_id, "words": tokenizer.vocab_size}
        how |= {"beams": self.beams, "per_beam": self.per_beam, "nucleus": self.nucleus, "seed": self.seed}
        found = encoder.source(variables, source, skips, function="caption", **how)
        known = captions_of_images(found)
        rows = list(known)
        if not rows:
            raise UserError(f"no record can be used: {skips}" if skips.total else "no image has a caption")
        captions = [generated_text(tokenizer, found.outputs[row]) for row in rows]
        references = list(known.values())
        metrics: dict[str, float | None] = {"cider": cider(captions, references)}
        metrics |= {f"bleu_{n}": value for n, value in enumerate(bleu(captions, references), 1)}
        matches = [words(text) in map(words, known) for text, known in zip(captions, references, strict=True)]
        metrics["exact_match"] = float(np.mean(matches))
        metrics["names_class"] = _names_class(captions, [found.labels[row] for row in rows], source.class_names)
        shown = tuple(metrics[name] for name in ("cider", "bleu_4", "exact_match", "names_class"))
        classes = "" if shown[3] is None else f", class named {100 * shown[3]:.1f}%"
        spread = [rows[number] for number in sorted(set(np.linspace(0, len(rows) - 1, _EXAMPLES, dtype=int).tolist()))]
        return evaluate.Result(
            metrics=metrics,
            summary=f"CIDEr {shown[0]:.3f}, BLEU-4 {100 * (shown[1] or 0):.1f}{classes}",
            headline=(f"{shown[0]:.2f}", "CIDEr"),
            tables=(evaluate.Table("Captions", ("CIDEr", "BLEU-4", "exact match", "class named"), {"": shown}),),
            examples=tuple(self._examples(encoder, variables, source, found, spread, tokenizer)),
        )

    def _examples(
        self,
        encoder: Encoder,
        variables: Any,
        source: Source,
        found: EmbeddedSet,
        rows: list[int],
        tokenizer: Tokenizer,
    ) -> list[evaluate.Example]:
        assert encoder.image is not None
        records = source.read([found.ids[row] for row in rows])
        # All of them could be read before.
        readable = {row: record for row, record in zip(rows, records, strict=True) if isinstance(record, Record)}
        if not readable:
            return []
        size, rows = encoder.image, list(readable)
        images = np.stack([prepare(open_image(record.image), size.size, size.pixels) for record in readable.values()])
        tokens = found.outputs[rows]
        weights = encoder("attention", variables, images, tokens) if encoder.has("attention") else [None] * len(rows)
        return [
            evaluate.Example(
                enlarged(image),
                f"{generated_text(tokenizer, text)} — of the data: {found.captions[row][0]}",
                () if attention is None else lit_words(image, text, attention, tokenizer),
            )
            for row, image, text, attention in zip(rows, images, tokens, weights, strict=True)
        ]


def _names_class(captions: list[str], labels: list[int | None], names: Any) -> float | None:
    """The share of the captions of labeled images in which the words of the class's name follow each other."""
    found = [
        f" {' '.join(words(names[label]))} " in f" {' '.join(words(text))} "
        for text, label in zip(captions, labels, strict=True)
        if label is not None and label < len(names)
    ]
    return float(np.mean(found)) if found else None
