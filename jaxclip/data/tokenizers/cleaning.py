"""What becomes of a text before it is cut into tokens."""

from __future__ import annotations

import html
import re
import string

import ftfy

# CLIP's longest token is 24 characters, so this reaches past `context_length` tokens of any text but one that is mostly
# white space, markup or control characters. Other vocabularies have few longer tokens, if any.
_CHARACTERS_PER_TOKEN = 32

# Text in which ftfy finds nothing to mend but curly quotes, and html nothing to unescape; ftfy costs ten times as much
# as all the rest. ASCII but for "&" and the control characters that are not white space; and among it, each alone, the
# characters below. Two in a row may be one that was decoded wrongly, and so may Â or Ã before a space.
_ASCII = r"[\t\n\f\r -%'-~]"
_ALONE = r"[\xa9\xae\xb0\xb7\xc0\xc1\xc4-\xff\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026\u2122]"
_PLAIN = re.compile(rf"{_ASCII}*(?:{_ALONE}{_ASCII}+)*{_ALONE}?")
_STRAIGHT = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
# Ampersands escaped over and over ("&amp;amp;amp;..."): ftfy takes a pass over the text for each level. More than 64
# levels are made 64, which gives the same: "&" where ftfy unescapes, and over a hundred tokens where it does not (it
# leaves text with a "<" alone).
_NESTED = re.compile(r"((?:(?:amp|AMP|#0*38|#[xX]0*26);){64})(?:(?:amp|AMP|#0*38|#[xX]0*26);)+")
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def beginning(text: str, context_length: int) -> str:
    """As much of a text as a row of `context_length` tokens can hold, whatever its length: bounds the time."""
    return text[: _CHARACTERS_PER_TOKEN * context_length]


def mended(text: str) -> str:
    """Text as OpenAI's tokenizer reads it, but for its case and its white space: mended and unescaped."""
    if not _PLAIN.fullmatch(text):
        text = ftfy.fix_text(_NESTED.sub(r"\1", text))
        text = _unescape(_unescape(text))
    elif not text.isascii():
        text = text.translate(_STRAIGHT)
    return text


def mended_pieces(text: str) -> list[str]:
    """The space-separated pieces of text as OpenAI's tokenizer cleans it: mended, unescaped, in lower case."""
    return mended(text).lower().split()


def _unescape(text: str) -> str:
    """`html.unescape`, also where Python refuses the number of a "&#111..." for its length (from 640 digits)."""
    try:
        return html.unescape(text)
    except ValueError:
        return html.unescape(re.sub("&#[0-9]{640,};?", "\N{REPLACEMENT CHARACTER}", text))


def canonical(text: str) -> str:
    """Lower case without ASCII punctuation, single spaces; an underscore counts as a space.

    SigLIP's form of texts: `canonicalize_text` of google-research/big_vision,
    big_vision/evaluators/proj/image_text/prompt_engineering.py.
    """
    return " ".join(text.translate(_NO_PUNCTUATION).lower().split())


def encodable(text: str) -> str:
    """Text that UTF-8 can spell: surrogates are joined to the character of their pair, or replaced where alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
