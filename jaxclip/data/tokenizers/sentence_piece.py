"""SentencePiece in SigLIP's form, by TensorFlow Text."""

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
    # Each letter by itself, as the tokenizers library does it: a sigma that ends a word is one like any other.
    "lower": lambda text: "".join(map(str.lower, text)),
    "none": str,
}


class SentencePieceTokenizer:
    """The Tokenizer of a SentencePiece model as SigLIP uses one (Zhai et al. 2023; google-research/big_vision).

    Texts are in lower case and without punctuation, SigLIP 2's in lower case alone. Every row ends with the end token,
    repeated to fill it, and the text's state is read at the last place (big_vision's
    `tokenize(eos="sticky", pad_value=1)` of c4_en, whose end token has id 1).

    Attributes:
      clean: what becomes of a text first, as the argument says.
    """

    start_id = None
    mask_id = None

    def __init__(
        self, model: bytes, pad_id: int | None = None, pad_token: str | None = None, clean: Clean = "canonical"
    ):
        """Reads a model.

        Args:
          model: what is in a .model file.
          pad_id: what fills the places after the end; the end token by default. SigLIP 2 fills with 0.
          pad_token: the same, as the vocabulary writes it.
          clean: what becomes of a text first: it is made canonical (`cleaning.canonical`), or lower case, or neither.

        Raises:
          ValueError: it is no such model, or has no end token, or not that padding, or clean is none of these.
        """
        if clean not in get_args(Clean):
            raise ValueError(f"its texts' cleaning {clean!r} is none of {', '.join(get_args(Clean))}")
        self.clean = clean
        with quiet_stderr():
            import tensorflow as tf
            import tensorflow_text

            # Left visible, the GPU's whole memory would go to TensorFlow, which computes nothing on it.
            tf.config.set_visible_devices([], "GPU")
            try:
                self._backend: Any = tensorflow_text.SentencepieceTokenizer(model=model, add_eos=True)
                self.vocab_size = int(self._backend.vocab_size())
                self.end_id = int(self._backend.tokenize("")[-1])
                reason = None
            except tf.errors.OpError as error:
                reason = "it has no end token" if "is not defined" in error.message else "damaged, or another thing"
        if reason is not None:
            raise ValueError(reason)
        if pad_token is not None:
            pad_id = int(self._backend.string_to_id(pad_token))  # the unknown token's where there is no such one
            if self.piece(pad_id) != pad_token:
                raise ValueError(f"the pad token {pad_token!r} is not in its vocabulary")
        self.pad_id = self.end_id if pad_id is None else pad_id
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"its ids are 0 to {self.vocab_size - 1}, and pad_id={self.pad_id} is none of them")
        self.model = model

    def __call__(self, texts: Sequence[str], context_length: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Tokenizer` has it; the second array is context_length - 1, where SigLIP reads a text's state."""
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, not one string")
        clean = _CLEAN[self.clean]
        read = [clean(cleaning.encodable(cleaning.beginning(text, context_length))) for text in texts]
        ids: list[np.ndarray] = []
        if read:
            ragged = self._backend.tokenize([text.encode() for text in read])
            # Each text's own end token goes, and comes back where it is not cut off.
            starts, stops = ragged.row_splits.numpy()[:-1], ragged.row_splits.numpy()[1:] - 1
            values = ragged.values.numpy()
            ids = [values[start:stop] for start, stop in zip(starts, stops, strict=True)]
        tokens, _ = lay_out(ids, context_length, self.pad_id, after=[self.end_id])
        return tokens, np.full(len(read), context_length - 1, np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids [length] up to the first end token. Raises KeyError for an id not in the vocabulary."""
        ids = np.asarray(tokens).tolist()
        unknown = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if unknown is not None:
            raise KeyError(unknown)
        ids = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
        return self._backend.detokenize(np.array(ids, np.int32)).numpy().decode("utf-8", "replace")

    def piece(self, token: int) -> str:
        """How the vocabulary writes an id, such as "</s>"."""
        return self._backend.id_to_string(token).numpy().decode()

    def to_json(self) -> str:
        """All there is to it: the model as base64, the pad id, and the cleaning of texts."""
        content = {"sentencepiece": base64.b64encode(self.model).decode(), "pad_id": self.pad_id}
        return json.dumps(content if self.clean == "canonical" else content | {"clean": self.clean})


def from_content(content: dict[str, Any]) -> SentencePieceTokenizer:
    """From the parsed text of `to_json`. Raises ValueError where it is damaged."""
    pad_id = content["pad_id"]
    if type(pad_id) is not int:
        raise ValueError(f"its pad_id {pad_id!r} is not a number")
    model = base64.b64decode(content["sentencepiece"], validate=True)
    return SentencePieceTokenizer(model, pad_id, clean=content.get("clean", "canonical"))
