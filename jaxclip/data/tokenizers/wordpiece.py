"""BERT's uncased WordPiece tokenizer (Devlin et al. 2019, section 4.1; google-research/bert, tokenization.py)."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxclip.data.tokenizers import cleaning
from jaxclip.data.tokenizers.hugging_face import HuggingFaceTokenizer
from jaxclip.errors import UserError

PAD, UNKNOWN, START, END, MASK = _SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_INSIDE = "##"  # prefix of a piece that does not start a word
_TRAINING_CONTEXT = 77
_MAX_LETTERS = 1000  # rarer letters are unknown, as in any WordPiece vocabulary


def from_vocabulary(text: str) -> HuggingFaceTokenizer:
    """From a vocab.txt, one token per line in the order of ids.

    Raises:
      ValueError: one of [PAD], [UNK], [CLS] and [SEP] is missing, a token occurs twice, or the vocabulary is cased: a
        token that is a plain word has a capital.
    """
    lines = text.removesuffix("\n").split("\n")
    tokens = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    if len(tokens) != len(lines):
        duplicate = collections.Counter(line.removesuffix("\r") for line in lines).most_common(1)[0][0]
        raise ValueError(f"the token {duplicate!r} occurs more than once")
    missing = next((token for token in (PAD, UNKNOWN, START, END) if token not in tokens), None)
    if missing is not None:
        raise ValueError(f"it has no {missing}")
    capital = next(filter(_is_cased, tokens), None)
    if capital is not None:
        raise ValueError(f"it is cased (it has {capital!r}); use the tokenizer.json of the same model")
    return _assembled(tokens)


def _is_cased(token: str) -> bool:
    """Whether a token is a plain word, or a piece of one, that no text in lower case contains.

    Special tokens may have capitals in any vocabulary. They have more than letters, such as the brackets of [unused1]
    and of Chinese-CLIP's <S>, and in lower case their spelling is plain text.
    """
    word = token.removeprefix(_INSIDE)
    return word.isalpha() and word != word.lower()


def train(captions: Iterable[str], vocab_size: int) -> HuggingFaceTokenizer:
    """Trains a vocabulary with BERT's five special tokens. The result does not depend on the order of the captions.

    It has fewer than `vocab_size` ids if no pair of adjacent pieces is left that occurs twice.

    Raises:
      UserError: vocab_size is too small for the special tokens and the letters, each at the start of and inside a word.
    """
    words: collections.Counter[str] = collections.Counter()
    normalizer, pre_tokenizer = _normalizer(), pre_tokenizers.BertPreTokenizer()
    for caption in captions:
        text = cleaning.encodable(cleaning.beginning(caption, _TRAINING_CONTEXT))
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    counts: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for letter in word:
            counts[letter] += count
    letters = sorted(sorted(counts, key=lambda letter: (-counts[letter], letter))[:_MAX_LETTERS])
    symbols = [*_SPECIAL, *letters, *(_INSIDE + letter for letter in letters)]
    if vocab_size < len(symbols):
        raise UserError(
            f"a WordPiece vocabulary of these captions must have at least {len(symbols)} tokens, not {vocab_size}"
        )
    # As special tokens, the letters get ids in this order, not in the order of occurrence (see `clip.train`).
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=symbols,
        limit_alphabet=len(letters),
        continuing_subword_prefix=_INSIDE,
        show_progress=False,
    )
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.train_from_iterator(_repeated(words), trainer)
    return _assembled(json.loads(backend.to_str())["model"]["vocab"])


def _repeated(words: dict[str, int]) -> Iterator[str]:
    """Texts of bounded length in which each word occurs as often as counted."""
    for word, count in sorted(words.items()):
        for start in range(0, count, 1000):
            yield f"{word} " * min(1000, count - start)


def _normalizer() -> normalizers.Normalizer:
    return normalizers.BertNormalizer(lowercase=True)


def _assembled(vocabulary: dict[str, int]) -> HuggingFaceTokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, continuing_subword_prefix=_INSIDE))
    backend.normalizer = _normalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing((END, vocabulary[END]), (START, vocabulary[START]))
    backend.decoder = decoders.WordPiece(prefix=_INSIDE)
    backend.add_special_tokens([token for token in _SPECIAL if token in vocabulary])
    return HuggingFaceTokenizer(backend.to_str())
