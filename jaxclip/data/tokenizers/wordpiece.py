"""BERT's WordPiece, uncased (Devlin et al. 2019, section 4.1; google-research/bert, tokenization.py)."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxclip.data.tokenizers import cleaning
from jaxclip.data.tokenizers.hugging_face import HuggingFaceTokenizer
from jaxclip.errors import UserError

PAD, UNKNOWN, START, END, MASK = _SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_INSIDE = "##"  # before a piece that does not begin a word
_TRAINING_CONTEXT = 77
_MOST_LETTERS = 1000  # letters that are rarer than the thousandth are unknown, as in any vocabulary of this kind


def from_vocabulary(text: str) -> HuggingFaceTokenizer:
    """From a vocab.txt, one token a line in the order of ids.

    Raises:
      ValueError: one of [PAD], [UNK], [CLS] and [SEP] is missing, a token is there twice, or it is not uncased.
    """
    lines = text.removesuffix("\n").split("\n")
    tokens = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    if len(tokens) != len(lines):
        twice = collections.Counter(line.removesuffix("\r") for line in lines).most_common(1)[0][0]
        raise ValueError(f"the token {twice!r} is there more than once")
    missing = next((token for token in (PAD, UNKNOWN, START, END) if token not in tokens), None)
    if missing is not None:
        raise ValueError(f"it has no {missing}")
    capital = next(
        (token for token in tokens if re.search("[A-Z]", token) and not re.fullmatch(r"\[.*\]", token)), None
    )
    if capital is not None:
        raise ValueError(f"it is cased (it has {capital!r}); give the tokenizer.json of the same model")
    return _assembled(tokens)


def train(captions: Iterable[str], vocab_size: int) -> HuggingFaceTokenizer:
    """A vocabulary of the captions' own with BERT's five special tokens; the same captions in any order give the same.

    It has fewer than `vocab_size` ids where no two neighbouring pieces are left that occur together twice.

    Raises:
      UserError: vocab_size does not hold the special tokens and the letters, each as a word's first and inside one.
    """
    words: collections.Counter[str] = collections.Counter()
    normalizer, pre_tokenizer = _normalizer(), pre_tokenizers.BertPreTokenizer()
    for caption in captions:
        read = cleaning.encodable(cleaning.beginning(caption, _TRAINING_CONTEXT))
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(read)))
    counts: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for letter in word:
            counts[letter] += count
    letters = sorted(sorted(counts, key=lambda letter: (-counts[letter], letter))[:_MOST_LETTERS])
    symbols = [*_SPECIAL, *letters, *(_INSIDE + letter for letter in letters)]
    if vocab_size < len(symbols):
        raise UserError(
            f"a WordPiece vocabulary of these captions must have at least {len(symbols)} tokens, not {vocab_size}"
        )
    # As special tokens the letters get their ids in this order, and not as the trainer meets them (see `clip.train`).
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
    """Text in which each word occurs as often as it is counted, in parts of no great length."""
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
