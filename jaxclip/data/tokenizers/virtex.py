"""SentencePiece tokenizer in VirTex's form: BPE with control symbols for the start, the end and masked tokens."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxclip.data.tokenizers import cleaning
from jaxclip.data.tokenizers.layout import lay_out
from jaxclip.errors import UserError
from jaxclip.quiet import quiet_stderr

START, END, MASK = _SPECIAL = ("[SOS]", "[EOS]", "[MASK]")
_TRAINING_CONTEXT = 77
_LONGEST = 1 << 20  # bytes of a caption, more than any that is truncated; the library leaves longer ones out
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


class VirTexTokenizer:
    """The `Tokenizer` of a SentencePiece model in VirTex's form (Desai and Johnson 2021, section 3; kdexd/virtex).

    Texts are in lower case without accents (`cleaning.unaccented`). The padding is the unknown token, id 0. A text that
    spells one of the control symbols has letters there, and not the symbol's id.
    """

    def __init__(self, model: bytes):
        """Reads a model.

        Args:
          model: the content of a .model file.

        Raises:
          ValueError: the model is invalid, or lacks one of the control symbols.
        """
        import sentencepiece

        damaged = False
        with quiet_stderr():
            try:
                self._backend = sentencepiece.SentencePieceProcessor(model_proto=model)
                damaged = not model
            except RuntimeError:
                damaged = True
        if damaged:
            raise ValueError("damaged, or of another format")
        ids = {piece: self._backend.piece_to_id(piece) for piece in _SPECIAL}
        missing = next((piece for piece, i in ids.items() if not self._backend.is_control(i)), None)
        if missing is not None:
            raise ValueError(f"it has no control symbol {missing}")
        self.start_id, self.end_id, self.mask_id = ids.values()
        self.pad_id: int = self._backend.unk_id()
        self.vocab_size: int = self._backend.vocab_size()
        self.model = model

    def __call__(self, texts: Sequence[str], context_length: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Tokenizer.__call__`; the second array has the positions of the end tokens."""
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, not one string")
        # One by one: for a list, the library starts threads.
        ids = [self._backend.encode(_clean(text, context_length)) for text in texts]
        return lay_out(ids, context_length, self.pad_id, before=[self.start_id], after=[self.end_id])

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids [length] up to the first end token; an unknown token is U+2047.

        Raises KeyError for an id that is not in the vocabulary.
        """
        ids = np.asarray(tokens).tolist()
        unknown = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if unknown is not None:
            raise KeyError(unknown)
        if self.end_id in ids:
            ids = ids[: ids.index(self.end_id)]
        while ids[-1:] == [self.pad_id]:
            ids.pop()
        return self._backend.decode(ids).strip()

    def to_json(self) -> str:
        """The tokenizer as JSON text: the model in base64."""
        return json.dumps({"virtex": base64.b64encode(self.model).decode()})


def is_one(model: bytes) -> bool:
    """Whether the content of a .model file names VirTex's control symbols."""
    return all(piece.encode() in model for piece in _SPECIAL)


def from_content(content: dict[str, Any]) -> VirTexTokenizer:
    """From the parsed text of `to_json`. Raises ValueError if it is damaged."""
    return VirTexTokenizer(base64.b64decode(content["virtex"], validate=True))


def train(captions: Iterable[str], vocab_size: int) -> VirTexTokenizer:
    """Trains a vocabulary as VirTex does (kdexd/virtex, scripts/preprocess/build_vocabulary.py).

    The ids are, in order, the unknown token, start, end and mask, the merges, and all characters of the captions.
    Letters are never merged with punctuation. The result does not depend on the order of the captions. It has fewer
    than `vocab_size` ids if nothing is left to merge.

    Raises:
      UserError: vocab_size is too small for the four special tokens and the characters, or the captions have none.
    """
    import sentencepiece

    # A list, because the library turns what an iterator raises, an interruption among it, into errors of its own.
    texts = [text for caption in captions if (text := _clean(caption, _TRAINING_CONTEXT)).strip()]
    if not texts:
        raise UserError("a SentencePiece vocabulary is trained on captions, and there is none with text")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            # Without the library's own <s> and </s>.
            bos_id=-1,
            eos_id=-1,
            control_symbols=list(_SPECIAL),
            max_sentence_length=_LONGEST,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        required = _TOO_SMALL.search(str(error))
        if required is None:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"no SentencePiece vocabulary can be trained on these captions ({reason})") from None
        raise UserError(
            f"a SentencePiece vocabulary of these captions must have at least {required[1]} tokens, not {vocab_size}"
        ) from None
    return VirTexTokenizer(model.getvalue())


def _clean(text: str, context_length: int) -> str:
    return cleaning.unaccented(cleaning.encodable(cleaning.beginning(text, context_length)))
