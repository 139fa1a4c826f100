"""CLIP's byte-level BPE: captions in, token ids of a fixed length out.

The ids are those of OpenAI's `SimpleTokenizer` (openai/CLIP, clip/simple_tokenizer.py), 49,408 with its vocabulary:
256 bytes, the same 256 bytes as a word's last, one id per merge, start of text, end of text.
"""

from __future__ import annotations

import gzip
import html
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Sequence

import ftfy
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from jaxclip.errors import UserError

# The loader calls from several threads: a pool of threads inside every call would only compete with those, and earlier
# releases of the library warn in each fork of a process that has used it. Read at each call; the user's own wins.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"

# BPE works on text, so each byte has a visible character that stands for it. The order is the order of ids.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
_BYTE_OF = {chr(b): b for b in _VISIBLE} | {chr(256 + i): b for i, b in enumerate(_HIDDEN)}
_SYMBOLS = [*_BYTE_OF, *(character + _WORD_END for character in _BYTE_OF)]

# What becomes a word, of text in lower case with single spaces. OpenAI's pattern ignores case, with two effects left
# in lower case: the long s counts as an s, and U+0345, a mark whose capital is a letter, is neither and so is lost.
_WORD = (
    r"<\|[sſ]tartoftext\|>|<\|endoftext\|>|'[sſ]|'t|'re|'ve|'m|'ll|'d"
    r"|\p{L}+|\p{N}|[^ \p{L}\p{N}\x{345}]+"
)

# CLIP's longest token is 24 characters, so this reaches past `context_length` tokens of any text but one that is
# mostly white space, markup or control characters.
_CHARACTERS_PER_TOKEN = 32

_OPENAI_MERGES = 49152 - 256 - 2  # OpenAI's file holds 262,144 merges, of which its tokenizer takes the first ones
_MOST_BYTES = 64 << 20  # of an unpacked vocabulary file; OpenAI's has 3 million
_WHERE = "OpenAI's is the file bpe_simple_vocab_16e6.txt.gz in the openai/CLIP repository on GitHub"


class Tokenizer:
    """Strings to fixed-length token ids. Safe to call from several threads.

    Attributes:
      vocab_size: how many ids there are; every id is below it.
      start_id: the id that starts every text.
      end_id: the id that ends every text.
      pad_id: what fills the places after the end; 0, as OpenAI has it, which is also the id of "!".
    """

    pad_id = 0

    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]):
        """Raises ValueError where these are not a byte-level BPE with word ends, saying why."""
        ids = list(vocabulary.values())
        if any(type(i) is not int for i in ids) or sorted(ids) != list(range(len(ids))):
            raise ValueError(f"its ids are not 0 to {len(ids) - 1}, each once")
        missing = next((symbol for symbol in (*_SYMBOLS, START, END) if symbol not in vocabulary), None)
        if missing is not None:
            raise ValueError(f"it has no {missing!r}")
        for left, right in merges:
            if not (left in vocabulary and right in vocabulary and left + right in vocabulary):
                raise ValueError(f"the merge {left!r} {right!r} is not in its vocabulary")
        self.vocab_size = len(vocabulary)
        self.start_id = vocabulary[START]
        self.end_id = vocabulary[END]
        self._tokens = {i: token for token, i in vocabulary.items()}
        self._backend = tokenizers.Tokenizer(models.BPE(vocabulary, list(merges), end_of_word_suffix=_WORD_END))
        self._backend.pre_tokenizer = _words()

    def __call__(self, texts: Sequence[str], context_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of texts. No string fails.

        A text too long for `context_length` loses its last tokens, not the end token. Of a text longer than
        32 * context_length characters the rest is not read, which bounds the time.

        Args:
          texts: n strings.
          context_length: at least 2.

        Returns:
          int32 [n, context_length]: start, the text, end, padding; and
          int32 [n]: where in each row the end is. A caption that spells "<|endoftext|>" has that id earlier too.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, not one string")
        most_characters = _CHARACTERS_PER_TOKEN * context_length
        cleaned = [_clean(text, most_characters) for text in texts]
        encodings = self._backend.encode_batch_fast(cleaned, add_special_tokens=False)
        tokens = np.full((len(cleaned), context_length), self.pad_id, np.int32)
        ends = np.empty(len(cleaned), np.int32)
        for row, (text, encoding) in enumerate(zip(cleaned, encodings, strict=True)):
            ids = self._spell(text) if START in text or END in text else encoding.ids
            end = min(len(ids) + 1, context_length - 1)
            tokens[row, 0] = self.start_id
            tokens[row, 1:end] = ids[: end - 1]
            tokens[row, end] = self.end_id
            ends[row] = end
        return tokens, ends

    def _spell(self, text: str) -> list[int]:
        """Ids of clean text in which a start or end token may stand as a word; anywhere else it is plain text."""
        ids = []
        for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(text):
            if word in (START, END):
                ids.append(self.start_id if word == START else self.end_id)
            else:
                ids += [token.id for token in self._backend.model.tokenize(word)]
        return ids

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids [length]: lower case, with a space after every word and punctuation mark.

        A leading start token, the last end token and all after it are left out. Raises KeyError for an id that is
        not in the vocabulary.
        """
        ids = np.asarray(tokens).tolist()
        if self.end_id in ids:
            ids = ids[: len(ids) - 1 - ids[::-1].index(self.end_id)]
        if ids[:1] == [self.start_id]:
            ids = ids[1:]
        text = bytearray()
        for token in (self._tokens[i] for i in ids):
            word = token.removesuffix(_WORD_END)
            text += b"".join(bytes([_BYTE_OF[c]]) if c in _BYTE_OF else c.encode() for c in word)
            text += b" " * (word != token)
        return text.decode("utf-8", errors="replace").strip()

    def to_json(self) -> str:
        """All there is to it, as the text of a Hugging Face tokenizer.json; `from_json` and `load` read it."""
        return self._backend.to_str()

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The tokenizer that `to_json` wrote, or that of Hugging Face's CLIP. Raises UserError for anything else."""
        return _parsed(_from_json, "the stored tokenizer", text)


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """A published tokenizer.

    Args:
      path: OpenAI's bpe_simple_vocab_16e6.txt.gz, gzipped or not; or Hugging Face's tokenizer.json; or its vocab.json
        or merges.txt with the other beside it; or a folder that holds Hugging Face's files.

    Raises:
      UserError: there is no such file, or it is damaged, or it is not such a vocabulary.
    """
    path = pathlib.Path(path).expanduser()
    if not os.path.exists(path):
        raise UserError(f"no tokenizer vocabulary at {path}; {_WHERE}")
    folder = path if path.is_dir() else path.parent
    pair = folder / "vocab.json", folder / "merges.txt"
    if path.is_dir() and (path / "tokenizer.json").is_file():
        path = path / "tokenizer.json"
    if path in (folder, *pair) and all(part.is_file() for part in pair):
        return _parsed(_from_pair, str(path), *map(_read, pair))
    if path.is_dir():
        raise UserError(f"{path} holds no tokenizer.json, nor vocab.json with merges.txt; {_WHERE}")
    text = _read(path)
    return _parsed(_from_json if text.lstrip().startswith("{") else _from_merges, str(path), text)


def train(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """A vocabulary of the captions' own, laid out as CLIP's; the same captions in any order give the same one.

    It has fewer than `vocab_size` ids where no two neighbouring symbols are left that occur together twice.

    Raises:
      UserError: vocab_size is below 514, which the bytes, the start and the end take.
    """
    if vocab_size < len(_SYMBOLS) + 2:
        raise UserError(f"a tokenizer's vocab_size must be at least {len(_SYMBOLS) + 2}, not {vocab_size}")
    # Given as special tokens the symbols get their ids in this order; the trainer would number them as it meets
    # them, which differs from run to run, and break ties between merges by those numbers.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        special_tokens=_SYMBOLS,
        end_of_word_suffix=_WORD_END,
        show_progress=False,
    )
    backend = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    backend.pre_tokenizer = _words()
    backend.train_from_iterator((_clean(caption, _CHARACTERS_PER_TOKEN * 77) for caption in captions), trainer)
    model = json.loads(backend.to_str())["model"]
    vocabulary = model["vocab"]
    return Tokenizer(
        vocabulary | {START: len(vocabulary), END: len(vocabulary) + 1},
        [(left, right) for left, right in model["merges"]],
    )


def _words() -> pre_tokenizers.PreTokenizer:
    """Clean text to words, and words to the characters that stand for their bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# ASCII but for "&" and the control characters that are not white space. In text of these alone ftfy finds nothing to
# mend and html nothing to unescape, and ftfy costs twice as much as all the rest.
_PLAIN = re.compile(r"[\t\n\f\r -%'-~]*")
# Ampersands escaped over and over ("&amp;amp;amp;..."): ftfy takes a pass over the text for each level. More than 64
# levels are made 64, which gives the same: "&" where ftfy unescapes, and over a hundred tokens where it does not (it
# leaves text with a "<" alone).
_NESTED = re.compile(r"((?:(?:amp|AMP|#0*38|#[xX]0*26);){64})(?:(?:amp|AMP|#0*38|#[xX]0*26);)+")


def _clean(text: str, most_characters: int) -> str:
    """What OpenAI's tokenizer makes of text before it looks for words: mended, unescaped, spaced and lower-cased."""
    text = text[:most_characters]
    if not _PLAIN.fullmatch(text):
        text = ftfy.fix_text(_NESTED.sub(r"\1", text))
        text = _unescape(_unescape(text))
    return " ".join(text.split()).lower()


def _unescape(text: str) -> str:
    """`html.unescape`, also where Python refuses the number of a "&#111..." for its length (from 640 digits)."""
    try:
        return html.unescape(text)
    except ValueError:
        return html.unescape(re.sub("&#[0-9]{640,};?", "\N{REPLACEMENT CHARACTER}", text))


def _read(path: pathlib.Path) -> str:
    """The text of a vocabulary file, unpacked if it is gzipped."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(_MOST_BYTES + 1)
        if len(data) <= _MOST_BYTES:
            return data.decode("utf-8")
        reason = f"more than {_MOST_BYTES >> 20} MiB"
    except (OSError, EOFError, zlib.error) as error:
        reason = f"cannot be read, copy it again: {error}"
    except UnicodeDecodeError:
        reason = "not text"
    raise UserError(f"{path} is not a tokenizer vocabulary ({reason}); {_WHERE}")


def _parsed(parse: Callable[..., Tokenizer], where: str, *texts: str) -> Tokenizer:
    """parse(*texts), with the errors that foreign text can cause as a UserError that names where it stands."""
    try:
        return parse(*texts)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:200] if isinstance(error, ValueError) else "not of its form"
        raise UserError(f"{where} is not a CLIP tokenizer vocabulary ({reason}); {_WHERE}") from error


def _from_json(text: str) -> Tokenizer:
    """From Hugging Face's tokenizer.json. Its words are split as CLIP's, whatever it says of that."""
    content = json.loads(text)
    if "model" not in content:
        raise ValueError("no 'model' in it; a vocab.json needs its merges.txt beside it")
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != _WORD_END:
        raise ValueError("a tokenizer of another kind than byte-level BPE with word ends")
    added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    return Tokenizer(model["vocab"] | added, merges)


def _from_pair(vocabulary: str, merges: str) -> Tokenizer:
    """From Hugging Face's vocab.json and merges.txt."""
    return Tokenizer(json.loads(vocabulary), _merges(merges.rstrip().split("\n")))


def _from_merges(text: str) -> Tokenizer:
    """From OpenAI's list of merges, of which the ids follow."""
    merges = _merges(text.rstrip().split("\n")[: 1 + _OPENAI_MERGES])
    tokens = [*_SYMBOLS, *map("".join, merges), START, END]
    return Tokenizer({token: i for i, token in enumerate(tokens)}, merges)


def _merges(lines: list[str]) -> list[tuple[str, str]]:
    """The merges of a file's lines: one that names the version, then one merge of two symbols a line."""
    header, *lines = lines
    if "#version" not in header:
        raise ValueError("its first line has no '#version'")
    merges = []
    for number, line in enumerate(lines, start=2):
        pair = tuple(line.split())
        if len(pair) != 2:
            raise ValueError(f"line {number} is not two symbols")
        merges.append(pair)
    if merges and not any(right.endswith(_WORD_END) for _, right in merges):
        raise ValueError(f"none of its merges ends a word with {_WORD_END}")
    return merges
