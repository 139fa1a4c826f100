"""Slow reference implementation of CLIP's tokenizer from its description, and strings for comparison."""

from __future__ import annotations

import gzip
import html
import itertools
import pathlib
import random
import re
import unicodedata

import ftfy
import numpy as np

START, END = "<|startoftext|>", "<|endoftext|>"
HEADER = '"bpe_simple_vocab_16e6.txt#version: 0.2'
# A vocabulary small enough to read: what the words below are spelled with, and pairs that compete for a letter.
MERGES = """t h  th e</w>  a n  an d</w>  c a  ca t</w>  o f</w>  p h  ph o  t o  t o</w>  pho to</w>  r e  re d</w>
' s</w>  ' t</w>  i n  in g</w>  a t</w>  l l</w>  ' ll</w>  ! !  ! !</w>  !! !</w>  . .  .. .</w>  a a  aa aa  Ã ©
Ã ©</w>  c a</w>  h e  o n  1 2  ð Ł  ðŁ ĺ  ðŁĺ Ĥ</w>  e n  en d  o f  t e  x t</w>  te xt</w>  < |"""

STRINGS = [
    "",
    " ",
    "a",
    "hello world",
    "a photo of a cat",
    "A Photo Of THE Cat.",
    "the cat's toy, the cats' toys; it's they'll we've I'm I'd don't WE'RE",
    "'s 't 'll ''s s' 'sad'tin",
    "\u2019s \u2018quoted\u2019 \u201cdouble\u201d",
    "'\u017f it'\u017f \u017f",
    "12 123 3.14 1,000,000 x2 2x \u00bd \u00b2 \u2167 \u0664\u0662",
    "!!! ?!? ... --- === ~~~~~~~~ $5.00 100% #tag @user a_b c-d",
    "http://example.com/a?b=c&d=e#f",
    "caf\u00e9 CAF\u00c9 cafe\u0301 na\u00efve \u00f1and\u00fa Stra\u00dfe",
    "\u0130stanbul \u039f\u0394\u039f\u03a3 \u03c3\u03c2 \u01c5",
    "\ufb01re \ufb05 \ufb06 \uff26\uff35\uff2c\uff2c \uff11\uff12 \uff76\uff9e",
    "\u65e5\u672c\u8a9e\u306e\u6587 \u4e2d\u6587 \ud55c\uad6d\uc5b4",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22",
    "\u05e2\u05d1\u05e8\u05d9\u05ea \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\U0001f602 \U0001f602\U0001f602\U0001f602",
    "\u2764\ufe0f \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1fa\U0001f1f8",
    "fish &amp; chips &lt;b&gt; &#39;s &eacute; &EACUTE; &hellip; &nbsp;&nbsp;x",
    "&amp;amp;lt; &amp;amp;amp; &amp &copy &notit; &#x1F602; &#0; &#xd800; &#55555555555;",
    "<i>fish &amp; chips</i> &amp;amp;amp; &eacute;",
    "line one &amp;\nline <two> &amp;amp;amp;\r\nline three &amp;amp;amp;",
    "tabs\tand\x0bodd\x0cspaces\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000end",
    "nul\x00 bell\x07 \x1b[31mred\x1b[0m \x7f \ufeff bom \u200bzero \u206a \ufffc",
    "lone \ud83d \ude02 pair \ud83d\ude02",
    "sÃ³ voilÃ le Ã© â€œquoteâ€\x9d â€™ \x93c1\x94",
    "a\u0345b !\u0345! \u0345 \u03b1\u0345",
    "\u0301\u0327 o\u0327\u0301 \u1e9e \U0001d54f",
    "a <|endoftext|> b<|startoftext|>c <|ENDOFTEXT|> !<|endoftext|> <|endoftext|>! <|\u017ftartoftext|>",
    "<|endoftext|><|endoftext|>'s<|startoftext|>",
    "a" * 70,
    "supercalifragilisticexpialidocious" * 2,
    "</w> the</w> <| |>",
    "\u202eright to left\u202c \U000e0067\U000e0062 \ue000 \U000f0000",
]


class Reference:
    """OpenAI's algorithm as plainly as it can be put, from a vocabulary and its merges."""

    def __init__(self, ids: dict[str, int], merges: list[tuple[str, str]]):
        self.ids = ids
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        text = re.sub(r"\s+", " ", text).strip().lower()
        inner = itertools.chain.from_iterable(self.word(word) for word in words_of(text))
        return [self.ids[START], *inner, self.ids[END]]

    def word(self, word: str) -> list[int]:
        if word in (START, END):
            return [self.ids[word]]
        if word not in self.known:
            self.known[word] = [self.ids[part] for part in self.parts(word)]
        return self.known[word]

    def parts(self, word: str) -> list[str]:
        parts = [VISIBLE[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while True:
            ranked = [(self.ranks[pair], pair) for pair in itertools.pairwise(parts) if pair in self.ranks]
            if not ranked:
                return parts
            pair, merged, at = min(ranked)[1], [], 0
            while at < len(parts):
                step = 2 if tuple(parts[at : at + 2]) == pair else 1
                merged.append("".join(parts[at : at + step]))
                at += step
            parts = merged


# The character for each byte: itself if it is visible in Latin-1, else the next unused one from 256 on.
SHOWN = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
HIDDEN = [byte for byte in range(256) if byte not in SHOWN]
VISIBLE = {byte: chr(byte) for byte in SHOWN} | {byte: chr(256 + i) for i, byte in enumerate(HIDDEN)}
ALPHABET = list(VISIBLE.values())
SPECIAL_OR_CONTRACTION = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'(s|t|re|ve|m|ll|d)", re.IGNORECASE)


def words_of(text: str) -> list[str]:
    """Special tokens, contractions, runs of letters, single numbers, runs of anything else but white space."""
    words, at = [], 0
    while at < len(text):
        if match := SPECIAL_OR_CONTRACTION.match(text, at):
            end = match.end()
        elif kind(text[at]) in ("space", "nothing"):
            at += 1
            continue
        else:
            end = at + 1
            while kind(text[at]) != "number" and end < len(text) and kind(text[end]) == kind(text[at]):
                end += 1
        words.append(text[at:end])
        at = end
    return words


def kind(character: str) -> str:
    if character == "\u0345":  # matches neither letters nor all but letters where case is ignored: its capital is one
        return "nothing"
    category = unicodedata.category(character)[0]
    return "space" if character.isspace() else {"L": "letter", "N": "number"}.get(category, "other")


def merges_of(text: str) -> list[tuple[str, str]]:
    return [tuple(merge.split()) for merge in re.split("  |\n", text) if len(merge.split()) == 2]


def ids_of(merges: list[tuple[str, str]]) -> dict[str, int]:
    tokens = [*ALPHABET, *(c + "</w>" for c in ALPHABET), *map("".join, merges), START, END]
    return {token: i for i, token in enumerate(tokens)}


def merges_in(file: pathlib.Path) -> list[tuple[str, str]]:
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")[1:48895]
    return [tuple(line.split()) for line in lines if line]


def write_small(folder: pathlib.Path) -> pathlib.Path:
    """The small vocabulary as OpenAI's file has its own."""
    path = folder / "bpe.txt.gz"
    path.write_bytes(gzip.compress("\n".join([HEADER, *map(" ".join, merges_of(MERGES)), ""]).encode()))
    return path


def row(tokenizer, text: str, context_length: int) -> list[int]:
    """The ids of one text up to its end, whose position must be the one returned."""
    tokens, ends = tokenizer([text], context_length)
    assert tokens.shape == (1, context_length) and tokens.dtype == ends.dtype == np.int32
    assert not tokens[0, ends[0] + 1 :].any()
    return tokens[0, : ends[0] + 1].tolist()


def random_strings(count: int) -> list[str]:
    rng = random.Random(0)
    ranges = [(0, 0x80), (0x80, 0x250), (0x370, 0x600), (0x2000, 0x2800), (0x3000, 0xA000), (0x1F300, 0x1FA00)]
    pieces = list(itertools.chain.from_iterable(re.split("( )", text) for text in STRINGS))
    assigned = [[chr(c) for c in range(*r) if unicodedata.category(chr(c)) != "Cn"] for r in ranges]

    def piece() -> str:
        if rng.random() < 0.5:
            return rng.choice(pieces)
        return "".join(rng.choices(rng.choice(assigned), k=rng.randint(1, 6)))

    return [rng.choice(["", " "]).join(piece() for _ in range(rng.randint(1, 9))) for _ in range(count)]
