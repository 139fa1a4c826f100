"""Text cleaning before tokenization: encoding repair, canonical forms, truncation."""

from __future__ import annotations

import html
import re
import string
import unicodedata

import ftfy

# CLIP's longest token has 24 characters, so this covers `context_length` tokens of any text that is not mostly white
# space, markup or control characters. Other vocabularies have few longer tokens, if any.
_CHARACTERS_PER_TOKEN = 32

# Text in which ftfy would change only curly quotes, and html.unescape nothing. ftfy takes ten times as long as all
# other steps. Such text is ASCII without "&" and control characters other than white space, mixed with single
# characters of the list below. Two of them in a row may be one wrongly decoded character, and so may Â or Ã before a
# space.
_ASCII = r"[\t\n\f\r -%'-~]"
_ALONE = r"[\xa9\xae\xb0\xb7\xc0\xc1\xc4-\xff\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026\u2122]"
_PLAIN = re.compile(rf"{_ASCII}*(?:{_ALONE}{_ASCII}+)*{_ALONE}?")
_STRAIGHT = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
# Repeatedly escaped ampersands ("&amp;amp;amp;..."): ftfy needs one pass over the text per level. More than 64 levels
# are reduced to 64, with the same result: "&" if ftfy unescapes, and over a hundred tokens if it does not (it does not
# unescape text that contains "<").
_NESTED = re.compile(r"((?:(?:amp|AMP|#0*38|#[xX]0*26);){64})(?:(?:amp|AMP|#0*38|#[xX]0*26);)+")
_NO_MARKS = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def beginning(text: str, context_length: int) -> str:
    """Truncates a text to what can fit into `context_length` tokens, which bounds the time for very long texts."""
    return text[: _CHARACTERS_PER_TOKEN * context_length]


def repaired(text: str) -> str:
    """Repairs and unescapes a text as OpenAI's tokenizer does; case and white space do not change."""
    if not _PLAIN.fullmatch(text):
        text = ftfy.fix_text(_NESTED.sub(r"\1", text))
        text = _unescape(_unescape(text))
    elif not text.isascii():
        text = text.translate(_STRAIGHT)
    return text


def repaired_pieces(text: str) -> list[str]:
    """The space-separated pieces of a text cleaned as by OpenAI's tokenizer: repaired, unescaped, in lower case."""
    return repaired(text).lower().split()


def _unescape(text: str) -> str:
    """`html.unescape` that also accepts "&#111..." with 640 digits or more, for which Python raises ValueError."""
    try:
        return html.unescape(text)
    except ValueError:
        return html.unescape(re.sub("&#[0-9]{640,};?", "\N{REPLACEMENT CHARACTER}", text))


def canonical(text: str) -> str:
    """Lower-case text without ASCII punctuation and with single spaces; underscores become spaces.

    This is SigLIP's form: `canonicalize_text` in google-research/big_vision,
    big_vision/evaluators/proj/image_text/prompt_engineering.py.
    """
    return " ".join(text.translate(_NO_PUNCTUATION).lower().split())


def plain_words(text: str) -> str:
    """Lower-case text without the punctuation of captions; hyphens and slashes become spaces.

    This is ALBEF's form: `pre_caption` in salesforce/ALBEF, dataset/utils.py.

    >>> plain_words("A man's T-shirt: <person> on/off, (red)!")
    'a mans t shirt person on off red'
    """
    return " ".join(text.lower().translate(_NO_MARKS).replace("<person>", "person").split())


def unaccented(text: str) -> str:
    """Lower-case text in Unicode's form NFKD without its combining marks.

    This is VirTex's form: `NormalizeCaption` in kdexd/virtex, virtex/data/transforms.py.
    """
    text = text.lower()
    if text.isascii():
        return text
    return "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))


def encodable(text: str) -> str:
    """Text that UTF-8 can encode: surrogate pairs are joined, lone surrogates replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
