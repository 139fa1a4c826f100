"""SentencePiece tokenizer in SigLIP's form, computed by TensorFlow Text."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from jaxclip.data.tokenizers import cleaning
from jaxclip.data.tokenizers.layout import lay_out
from jaxclip.quiet import quiet_stderr

Clean = Literal["canonical", "lower", "none"]
_CLEAN: dict[Clean, Callable[[str], str]] = {
    "canonical": cleaning.canonical,
    # Letter by letter, as in the tokenizers library, so that a capital sigma at the end of a word is not special.
    "lower": lambda text: "".join(map(str.lower, text)),
    "none": str,
}


class SentencePieceTokenizer:
    """The `Tokenizer` of a SentencePiece model in SigLIP's form (Zhai et al. 2023; google-research/big_vision).

    SigLIP's texts are lower case without punctuation; SigLIP 2's are lower case. Rows are padded with the end token,
    and the text is represented by the state at the last position (big_vision's `tokenize(eos="sticky", pad_value=1)` of
    c4_en, whose end token has id 1).

    Attributes:
      clean: the text cleaning, see `__init__`.
    """

    start_id = None
    mask_id = None

    def __init__(
        self, model: bytes, pad_id: int | None = None, pad_token: str | None = None, clean: Clean = "canonical"
    ):
        """Reads a model.

        Args:
          model: the content of a .model file.
          pad_id: the padding id; defaults to the end token's. SigLIP 2 pads with 0.
          pad_token: the padding token as text, instead of `pad_id`.
          clean: "canonical" (`cleaning.canonical`), "lower" for lower case, or "none".

        Raises:
          ValueError: the model is invalid, has no end token or no such padding, or `clean` is unknown.
        """
        if clean not in get_args(Clean):
            raise ValueError(f"its text cleaning {clean!r} is not one of {', '.join(get_args(Clean))}")
        self.clean = clean
        with quiet_stderr():
            import tensorflow as tf
            import tensorflow_text

            # Otherwise TensorFlow, which computes nothing on the GPU, would allocate all of its memory.
            tf.config.set_visible_devices([], "GPU")
            try:
                self._backend: Any = tensorflow_text.SentencepieceTokenizer(model=model, add_eos=True)
                self.vocab_size = int(self._backend.vocab_size())
                self.end_id = int(self._backend.tokenize("")[-1])
                reason = None
            except tf.errors.OpError as error:
                reason = "it has no end token" if "is not defined" in error.message else "damaged, or of another format"
        if reason is not None:
            raise ValueError(reason)
        if pad_token is not None:
            pad_id = int(self._backend.string_to_id(pad_token))  # the unknown token's id if there is no such token
            if self.piece(pad_id) != pad_token:
                raise ValueError(f"the pad token {pad_token!r} is not in its vocabulary")
        self.pad_id = self.end_id if pad_id is None else pad_id
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"its ids are 0 to {self.vocab_size - 1}, which pad_id={self.pad_id} is not among")
        self.model = model

    def __call__(self, texts: Sequence[str], context_length: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Tokenizer.__call__`; all positions are context_length - 1, where SigLIP reads a text's state."""
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, not one string")
        clean = _CLEAN[self.clean]
        cleaned = [clean(cleaning.encodable(cleaning.beginning(text, context_length))) for text in texts]
        ids: list[np.ndarray] = []
        if cleaned:
            ragged = self._backend.tokenize([text.encode() for text in cleaned])
            # Without the end tokens, which `lay_out` adds again after truncation.
            starts, stops = ragged.row_splits.numpy()[:-1], ragged.row_splits.numpy()[1:] - 1
            values = ragged.values.numpy()
            ids = [values[start:stop] for start, stop in zip(starts, stops, strict=True)]
        tokens, _ = lay_out(ids, context_length, self.pad_id, after=[self.end_id])
        return tokens, np.full(len(cleaned), context_length - 1, np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids [length] up to the first end token. Raises KeyError for an id not in the vocabulary."""
        ids = np.asarray(tokens).tolist()
        unknown = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if unknown is not None:
            raise KeyError(unknown)
        ids = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
        return self._backend.detokenize(np.array(ids, np.int32)).numpy().decode("utf-8", "replace")

    def piece(self, token: int) -> str:
        """The text of an id in the vocabulary, such as "</s>"."""
        return self._backend.id_to_string(token).numpy().decode()

    def to_json(self) -> str:
        """The tokenizer as JSON text: the model in base64, the padding id and the text cleaning."""
        content = {"sentencepiece": base64.b64encode(self.model).decode(), "pad_id": self.pad_id}
        return json.dumps(content if self.clean == "canonical" else content | {"clean": self.clean})


def from_content(content: dict[str, Any]) -> SentencePieceTokenizer:
    """From the parsed text of `to_json`. Raises ValueError if it is damaged."""
    pad_id = content["pad_id"]
    if type(pad_id) is not int:
        raise ValueError(f"its pad_id {pad_id!r} is not an integer")
    model = base64.b64decode(content["sentencepiece"], validate=True)
    return SentencePieceTokenizer(model, pad_id, clean=content.get("clean", "canonical"))
