"""Tokenizers from files: which kind one is, and one line on what is wrong with it."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable

from jaxclip.data.storage import is_remote
from jaxclip.data.tokenizers import clip_files, sentence_piece, wordpiece
from jaxclip.data.tokenizers.hugging_face import HuggingFaceTokenizer
from jaxclip.data.tokenizers.tokenizer import Tokenizer
from jaxclip.errors import UserError

_MOST_BYTES = 64 << 20  # of an unpacked vocabulary file; OpenAI's has 3 million, Gemma's tokenizer.json 34
_ACCEPTED = (
    "accepted are CLIP's merges (OpenAI's are the file bpe_simple_vocab_16e6.txt.gz in the openai/CLIP repository on "
    "GitHub), vocab.json with merges.txt, any Hugging Face tokenizer.json, BERT's vocab.txt and a SentencePiece .model"
)


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """A published tokenizer, or one that `to_json` wrote.

    Args:
      path: OpenAI's bpe_simple_vocab_16e6.txt.gz, gzipped or not; or CLIP's vocab.json or merges.txt with the other
        beside it; or a Hugging Face tokenizer.json; or the vocab.txt of an uncased BERT; or a SentencePiece .model; or
        a folder that holds one of these.

    Raises:
      UserError: there is no such file, or it is damaged, or it is none of these.
    """
    if is_remote(os.fspath(path)):
        raise UserError(f"{path}: copy the vocabulary to a local file and name that")
    path = pathlib.Path(os.fspath(path)).expanduser()
    if not os.path.exists(path):
        raise UserError(f"no tokenizer vocabulary at {path}; {_ACCEPTED}")
    folder = path if path.is_dir() else path.parent
    pair = folder / "vocab.json", folder / "merges.txt"
    if path.is_dir() and (path / "tokenizer.json").is_file():
        path = path / "tokenizer.json"
    if path in (folder, *pair) and all(part.is_file() for part in pair):
        return _parsed(clip_files.from_pair, str(path), *map(_text, pair))
    if path.is_dir():
        others = [*folder.glob("*.model"), *folder.glob("vocab.txt")]
        if len(others) != 1:
            found = "several vocabularies: name one of them" if others else "no tokenizer's files"
            raise UserError(f"{path} holds {found}; {_ACCEPTED}")
        (path,) = others
    if path.suffix == ".model":
        return _parsed(sentence_piece.SentencePieceTokenizer, str(path), _bytes(path))
    text = _text(path)
    if text.lstrip().startswith("{"):
        return _parsed(_from_json, str(path), text, path.with_name("tokenizer_config.json"))
    is_bert = re.search(r"^\[UNK\]\r?$", text, re.MULTILINE)
    return _parsed(wordpiece.from_vocabulary if is_bert else clip_files.from_merges, str(path), text)


def from_json(text: str) -> Tokenizer:
    """The tokenizer whose `to_json` gave this text. Raises UserError for anything else."""
    return _parsed(_from_json, "the stored tokenizer", text)


def _from_json(text: str, settings: pathlib.Path | None = None) -> Tokenizer:
    content = json.loads(text)
    if "sentencepiece" in content:
        return sentence_piece.from_content(content)
    if "model" not in content:
        raise ValueError("no 'model' in it; a vocab.json needs its merges.txt beside it")
    if clip_files.is_clip(content):
        return clip_files.from_content(content)
    pad_token = None
    if settings is not None and settings.is_file():
        pad_token = json.loads(_text(settings)).get("pad_token")
        pad_token = pad_token["content"] if isinstance(pad_token, dict) else pad_token
    return HuggingFaceTokenizer(text, pad_token)


def _bytes(path: pathlib.Path) -> bytes:
    """What is in a vocabulary file, unpacked if it is gzipped."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(_MOST_BYTES + 1)
        if len(data) <= _MOST_BYTES:
            return data
        reason = f"more than {_MOST_BYTES >> 20} MiB"
    except (OSError, EOFError, zlib.error) as error:
        reason = f"cannot be read, copy it again: {error}"
    raise UserError(f"{path} is not a tokenizer vocabulary ({reason}); {_ACCEPTED}")


def _text(path: pathlib.Path) -> str:
    try:
        return _bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a tokenizer vocabulary (not text); {_ACCEPTED}") from None


def _parsed(parse: Callable[..., Tokenizer], where: str, *contents: object) -> Tokenizer:
    """parse(*contents), with the errors that foreign content can cause as a UserError that names where it stands."""
    try:
        return parse(*contents)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:200] if isinstance(error, ValueError) else "not of its form"
        raise UserError(f"{where} is not a tokenizer vocabulary ({reason}); {_ACCEPTED}") from error
