"""Tokenizers from files: which kind one is, and one line on what is wrong with it."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable

from jaxclip.data.storage import is_remote
from jaxclip.data.tokenizers import clip_files, normalising, sentence_piece, wordpiece
from jaxclip.data.tokenizers.clip import ClipTokenizer
from jaxclip.data.tokenizers.hugging_face import HuggingFaceTokenizer
from jaxclip.data.tokenizers.sentence_piece import Clean, SentencePieceTokenizer
from jaxclip.data.tokenizers.tokenizer import Tokenizer
from jaxclip.errors import UserError

_MOST_BYTES = 64 << 20  # of an unpacked vocabulary file; OpenAI's has 3 million, Gemma's tokenizer.json 34
_ACCEPTED = (
    "accepted are CLIP's merges (OpenAI's are the file bpe_simple_vocab_16e6.txt.gz in the openai/CLIP repository on "
    "GitHub), vocab.json with merges.txt, any Hugging Face tokenizer.json, BERT's vocab.txt and a SentencePiece .model"
)
# What transformers (5.23) does to texts by a tokenizer_config.json's tokenizer_class, where the vocabulary is a .model.
_CLEAN_OF: dict[str, Clean] = {"Siglip2Tokenizer": "lower", "GemmaTokenizer": "none"}


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What a tokenizer_config.json says of the vocabulary beside it.

    Attributes:
      kind: its tokenizer_class, without the Fast that older ones end with.
      pad_token: None where it names none.
    """

    kind: str | None = None
    pad_token: str | None = None


def load(path: str | os.PathLike[str], *, clean: str | None = None) -> Tokenizer:
    """A published tokenizer, or one that `to_json` wrote.

    A tokenizer_config.json beside a tokenizer.json or a .model is taken at its word: for the padding, and for what
    transformers' SiglipTokenizer and Siglip2Tokenizer do to texts.

    Args:
      path: OpenAI's bpe_simple_vocab_16e6.txt.gz, gzipped or not; or CLIP's vocab.json or merges.txt with the other
        beside it; or a Hugging Face tokenizer.json; or the vocab.txt of an uncased BERT; or a SentencePiece .model; or
        a folder that holds one of these.
      clean: what open_clip does to texts before any of that: "whitespace", "lower" or "canonicalize".

    Raises:
      UserError: there is no such file, or it is damaged, or it is none of these, or its texts are cleaned otherwise.
    """
    tokenizer = _opened(path, clean)
    # The other two come to the same: CLIP's texts are mended and in lower case here.
    if isinstance(tokenizer, ClipTokenizer) and clean == "canonicalize":
        raise UserError(f"{path} is a vocabulary of CLIP's form, which jaxclip has only for texts with punctuation")
    return tokenizer


def _opened(path: str | os.PathLike[str], clean: str | None) -> Tokenizer:
    if is_remote(os.fspath(path)):
        raise UserError(f"{path}: copy the vocabulary to a local file and name that")
    path = pathlib.Path(os.fspath(path)).expanduser()
    if not os.path.exists(path):
        raise UserError(f"no tokenizer vocabulary at {path}; {_ACCEPTED}")
    folder = path if path.is_dir() else path.parent
    pair = folder / "vocab.json", folder / "merges.txt"
    if path.is_dir() and (path / "tokenizer.json").is_file():
        # transformers' SiglipTokenizer reads nothing but this.
        own = path / "spiece.model"
        path = own if own.is_file() and _settings(folder).kind == "SiglipTokenizer" else path / "tokenizer.json"
    if path in (folder, *pair) and all(part.is_file() for part in pair):
        return _parsed(clip_files.from_pair, str(path), *map(_text, pair))
    if path.is_dir():
        others = [*folder.glob("*.model"), *folder.glob("vocab.txt")]
        if len(others) != 1:
            found = "several vocabularies: name one of them" if others else "no tokenizer's files"
            raise UserError(f"{path} holds {found}; {_ACCEPTED}")
        (path,) = others
    if path.suffix == ".model":
        return _parsed(_from_model, str(path), _bytes(path), _settings(folder), clean)
    text = _text(path)
    if text.lstrip().startswith("{"):
        return _parsed(_from_json, str(path), text, _settings(folder), clean)
    if re.search(r"^\[UNK\]\r?$", text, re.MULTILINE):
        return _parsed(_from_vocabulary, str(path), text, clean)
    return _parsed(clip_files.from_merges, str(path), text)


def from_json(text: str) -> Tokenizer:
    """The tokenizer whose `to_json` gave this text. Raises UserError for anything else."""
    return _parsed(_from_json, "the stored tokenizer", text)


def _from_json(text: str, settings: _Settings = _Settings(), clean: str | None = None) -> Tokenizer:
    content = json.loads(text)
    if "sentencepiece" in content:
        return sentence_piece.from_content(content)
    if "model" not in content:
        raise ValueError("no 'model' in it; a vocab.json needs its merges.txt beside it")
    if clip_files.is_clip(content):
        return clip_files.from_content(content)
    if settings.kind == "Siglip2Tokenizer":
        text = json.dumps(normalising.lowered(content))
    if settings.kind == "SiglipTokenizer" and clean in (None, "whitespace", "lower"):
        clean = "siglip"
    return HuggingFaceTokenizer(text, settings.pad_token, clean)


def _from_model(model: bytes, settings: _Settings, clean: str | None) -> SentencePieceTokenizer:
    kind: Clean = _CLEAN_OF.get(settings.kind or "", "canonical")
    pad_token = settings.pad_token or ("<pad>" if settings.kind in _CLEAN_OF else None)
    if clean == "canonicalize" or clean == "lower" and kind == "none":
        kind = "canonical" if clean == "canonicalize" else "lower"
    return SentencePieceTokenizer(model, pad_token=pad_token, clean=kind)


def _from_vocabulary(text: str, clean: str | None) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(wordpiece.from_vocabulary(text).to_json(), clean=clean)


def _settings(folder: pathlib.Path) -> _Settings:
    """What the tokenizer_config.json of a folder says, if there is one."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return _Settings()
    try:
        content = json.loads(_text(path))
        kind, pad = content.get("tokenizer_class"), content.get("pad_token")
        pad = pad["content"] if isinstance(pad, dict) else pad
        if not all(isinstance(value, str | None) for value in (kind, pad)):
            raise ValueError("its tokenizer_class or its pad_token is no text")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:200] if isinstance(error, ValueError) else "not of its form"
        raise UserError(f"{path} cannot be used ({reason}); copy it again") from error
    return _Settings(kind and kind.removesuffix("Fast"), pad)


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
