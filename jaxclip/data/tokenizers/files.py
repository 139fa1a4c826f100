"""Loading of published and saved tokenizers, with one-line errors for invalid files."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable
from typing import Any

from jaxclip.data.storage import is_remote
from jaxclip.data.tokenizers import clip_files, normalizing, sentence_piece, virtex, wordpiece
from jaxclip.data.tokenizers.clip import END, ClipTokenizer
from jaxclip.data.tokenizers.hugging_face import HuggingFaceTokenizer
from jaxclip.data.tokenizers.sentence_piece import Clean, SentencePieceTokenizer
from jaxclip.data.tokenizers.tokenizer import Tokenizer
from jaxclip.errors import UserError

_MAX_BYTES = 64 << 20  # of an uncompressed vocabulary file; OpenAI's has 3 million, Gemma's tokenizer.json 34
_ACCEPTED = (
    "accepted are CLIP's merges (OpenAI's are the file bpe_simple_vocab_16e6.txt.gz in the openai/CLIP repository on "
    "GitHub), vocab.json with merges.txt, any Hugging Face tokenizer.json, BERT's vocab.txt and a SentencePiece .model"
)
# How transformers (5.23) cleans texts for a .model, by the tokenizer_class of tokenizer_config.json.
_CLEAN_OF: dict[str, Clean] = {"Siglip2Tokenizer": "lower", "GemmaTokenizer": "none"}


@dataclasses.dataclass(frozen=True)
class _Settings:
    """Settings in a tokenizer_config.json for the vocabulary beside it.

    Attributes:
      kind: the tokenizer_class, without the suffix Fast of older files.
      pad_token: the padding token; None if not given.
    """

    kind: str | None = None
    pad_token: str | None = None


def load(path: str | os.PathLike[str], *, clean: str | None = None, named_padding: bool = False) -> Tokenizer:
    """Loads a published tokenizer, or one saved by `to_json`.

    A tokenizer_config.json beside a tokenizer.json or a .model determines the padding token (in older folders, the
    special_tokens_map.json), and the text cleaning of transformers' SiglipTokenizer and Siglip2Tokenizer.

    Args:
      path: OpenAI's bpe_simple_vocab_16e6.txt.gz, compressed or not; CLIP's vocab.json or merges.txt with the other
        beside it; a Hugging Face tokenizer.json; the vocab.txt of an uncased BERT; a SentencePiece .model, in VirTex's
        form if it has the control symbols [SOS], [EOS] and [MASK], or else in SigLIP's; or a folder that contains one
        of these.
      clean: the text cleaning before tokenization: open_clip's "whitespace", "lower" or "canonicalize", or "albef".
      named_padding: whether a vocabulary of CLIP's form is padded as in transformers, with the token that the files
        name. By default it is padded with id 0, as in OpenAI's code; a causal tower that is read at the end token does
        not see the difference.

    Raises:
      UserError: the file does not exist, is damaged, has another format, does not support this cleaning, or names no
        padding.
    """
    tokenizer = _open(path, clean, named_padding)
    # "whitespace" and "lower" make no difference, because CLIP's texts are repaired and in lower case anyway.
    if isinstance(tokenizer, ClipTokenizer) and clean == "canonicalize":
        raise UserError(
            f"{path} is a vocabulary of CLIP's form, which jaxclip supports only for texts with punctuation; "
            "remove clean='canonicalize'"
        )
    if clean == "albef" and not isinstance(tokenizer, HuggingFaceTokenizer):
        raise UserError(
            f"{path} is a vocabulary of CLIP's or SentencePiece's form, whose texts jaxclip does not clean as ALBEF's; "
            "remove clean='albef', or take the vocabulary of BERT"
        )
    return tokenizer


def _open(path: str | os.PathLike[str], clean: str | None, named_padding: bool) -> Tokenizer:
    if is_remote(os.fspath(path)):
        raise UserError(f"{path} is remote; copy the vocabulary to a local file")
    path = pathlib.Path(os.fspath(path)).expanduser()
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist; {_ACCEPTED}")
    folder = path if path.is_dir() else path.parent
    pair = folder / "vocab.json", folder / "merges.txt"
    if path.is_dir() and (path / "tokenizer.json").is_file():
        # transformers' SiglipTokenizer reads only this file.
        own = path / "spiece.model"
        path = own if own.is_file() and _settings(folder).kind == "SiglipTokenizer" else path / "tokenizer.json"
    if path in (folder, *pair) and all(part.is_file() for part in pair):
        return _parsed(_from_clip, str(path), clip_files.from_pair, _settings(folder), named_padding, *map(_text, pair))
    if path.is_dir():
        others = [*folder.glob("*.model"), *folder.glob("vocab.txt")]
        if len(others) != 1:
            content = "several vocabularies; choose one of them" if others else "no tokenizer files"
            raise UserError(f"{path} contains {content}; {_ACCEPTED}")
        (path,) = others
    if path.suffix == ".model":
        return _parsed(_from_model, str(path), _bytes(path), _settings(folder), clean)
    text = _text(path)
    if text.lstrip().startswith("{"):
        return _parsed(_from_json, str(path), text, _settings(folder), clean, named_padding)
    if re.search(r"^\[UNK\]\r?$", text, re.MULTILINE):
        return _parsed(_from_vocabulary, str(path), text, clean)
    return _parsed(_from_clip, str(path), clip_files.from_merges, _settings(folder), named_padding, text)


def from_json(text: str) -> Tokenizer:
    """Restores a tokenizer from the text of `to_json`. Raises UserError for any other text."""
    return _parsed(_from_json, "the stored tokenizer", text)


def _from_json(
    text: str, settings: _Settings = _Settings(), clean: str | None = None, named_padding: bool = False
) -> Tokenizer:
    content = json.loads(text)
    if "virtex" in content:
        return virtex.from_content(content)
    if "sentencepiece" in content:
        return sentence_piece.from_content(content)
    if "model" not in content:
        raise ValueError("it has no 'model'; a vocab.json needs its merges.txt beside it")
    if clip_files.is_clip(content):
        return _from_clip(clip_files.from_content, settings, named_padding, content)
    if settings.kind == "Siglip2Tokenizer":
        text = json.dumps(normalizing.lowered(content))
    if settings.kind == "SiglipTokenizer" and clean in (None, "whitespace", "lower"):
        clean = "siglip"
    return HuggingFaceTokenizer(text, settings.pad_token, clean)


def _from_clip(
    parse: Callable[..., ClipTokenizer], settings: _Settings, named_padding: bool, *contents: Any
) -> ClipTokenizer:
    if not named_padding:
        return parse(*contents)
    pad_token = settings.pad_token or (END if settings.kind == "CLIPTokenizer" else None)  # transformers' default
    if pad_token is None and parse is clip_files.from_content:
        pad_token = clip_files.padding(*contents)
    if pad_token is None:
        example = json.dumps({"pad_token": END})
        raise ValueError(f"its padding token is unknown; put a tokenizer_config.json such as {example} beside it")
    return parse(*contents, pad_token)


def _from_model(model: bytes, settings: _Settings, clean: str | None) -> Tokenizer:
    if virtex.is_one(model):
        if clean not in (None, "albef"):  # see `load`
            raise ValueError(f"VirTex's texts are not cleaned by clean={clean!r}")
        return virtex.VirTexTokenizer(model)
    kind: Clean = _CLEAN_OF.get(settings.kind or "", "canonical")
    pad_token = settings.pad_token or ("<pad>" if settings.kind in _CLEAN_OF else None)
    if clean == "canonicalize" or clean == "lower" and kind == "none":
        kind = "canonical" if clean == "canonicalize" else "lower"
    return SentencePieceTokenizer(model, pad_token=pad_token, clean=kind)


def _from_vocabulary(text: str, clean: str | None) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(wordpiece.from_vocabulary(text).to_json(), clean=clean)


def _settings(folder: pathlib.Path) -> _Settings:
    """The settings in a folder's tokenizer_config.json and special_tokens_map.json, if there are any.

    The second is read as in transformers (5.24), only if the first has no added_tokens_decoder, and goes before it.
    """
    content: dict[str, Any] = {}
    path = folder
    try:
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if (folder / name).is_file() and "added_tokens_decoder" not in content:
                path = folder / name
                content = content | json.loads(_text(path))
        kind, pad = content.get("tokenizer_class"), content.get("pad_token")
        pad = pad["content"] if isinstance(pad, dict) else pad
        if not all(isinstance(value, str | None) for value in (kind, pad)):
            raise ValueError("its tokenizer_class or its pad_token is not a string")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:200] if isinstance(error, ValueError) else "invalid structure"
        raise UserError(f"{path} cannot be used ({reason}); copy it again") from error
    return _Settings(kind and kind.removesuffix("Fast"), pad)


def _bytes(path: pathlib.Path) -> bytes:
    """The content of a vocabulary file, uncompressed if it is gzipped."""
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if is_gzip else file).read(_MAX_BYTES + 1)
        if len(data) <= _MAX_BYTES:
            return data
        reason = f"more than {_MAX_BYTES >> 20} MiB"
    except (OSError, EOFError, zlib.error) as error:
        reason = f"cannot be read, copy it again: {error}"
    raise UserError(f"{path} is not a tokenizer vocabulary ({reason}); {_ACCEPTED}")


def _text(path: pathlib.Path) -> str:
    try:
        return _bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a tokenizer vocabulary (not text); {_ACCEPTED}") from None


def _parsed(parse: Callable[..., Tokenizer], where: str, *contents: object) -> Tokenizer:
    """Returns parse(*contents); converts the exceptions that invalid content can cause to a UserError with its path."""
    try:
        return parse(*contents)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:200] if isinstance(error, ValueError) else "invalid structure"
        raise UserError(f"{where} is not a tokenizer vocabulary ({reason}); {_ACCEPTED}") from error
