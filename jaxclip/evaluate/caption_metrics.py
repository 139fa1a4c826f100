"""BLEU and CIDEr-D of generated captions, as the COCO caption evaluation computes them (Chen et al. 2015)."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Sequence

import numpy as np

from jaxclip.errors import UserError

_References = list[str] | tuple[str, ...]  # of one image; not a string, which would be a sequence of letters
_Gram = tuple[str, ...]

_ORDERS = 4  # n-grams of one to four words
_SIGMA = 6.0  # words: the width of CIDEr-D's penalty on differences of length

# The evaluation adds these to BLEU's numerators and denominators, so that it is defined without a match.
_TINY, _SMALL = 1e-15, 1e-9

# The ends of words that the Penn Treebank divides: can|not, gon|na, does|n't, man|'s.
_DIVIDED = re.compile(
    r"\b(?:can(?=not\b)|(?:gon|wan)(?=na\b)|got(?=ta\b)|(?:lem|gim)(?=me\b))|(?<!\w)'t(?=(?:is|was)\b)"
    r"|\w(?=n't\b|'(?:s|re|ve|ll|m|d)\b)",
    re.IGNORECASE,
)
_ABBREVIATIONS = (
    "mr mrs ms dr drs prof profs sen sens rep reps gov govs lt col gen adm rev maj sgt cpl pvt capt pres hon det "
    "mt ft st ave rd blvd jr sr bros esq inc co corp ltd dept assn mfg est etc al vs calif fla penn ga va md "
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri ph.d ed.d"
)
_TOKEN = re.compile(
    rf"""
      (?i: (?: {"|".join(map(re.escape, _ABBREVIATIONS.split()))} ) \. (?!\w)
         | (?: nos? | figs? | pp ) \. (?= \s* \d )
         | (?: [^\W\d_] \. )+ (?!\w)                                     # u.s., and J. of J. Smith
         | n't \b | ' (?: s | re | ve | ll | m | d | em | til | \d0s ) \b | 't (?= \s (?:is|was) )
         | 'n'? (?!\w) )
    | (?: [^\W\d_iIyY] ' (?= [^\W\d_]{{2}} ) )?                          # o'clock
      (?: (?<!\S) [-+]? \.? (?=\d) )?                                    # -5, .5
      (?: [^\W_] | (?<=\d) [,:] (?=\d) | (?<=[^\W_]) [-./@] (?=[^\W_]) | (?<=[A-Z]) & (?=[A-Z]) )+
    | [?!]{{2,}} | \*+ | \S
    """,
    re.VERBOSE,
)
_DROPPED = frozenset("'\"`.?!,:-;\u201c\u201d\u2013\u2014\u2026\ufffd")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def words(text: str) -> list[str]:
    """The words of a caption, in lower case and without punctuation.

    They are those of the COCO evaluation: of the Penn Treebank's tokenization, without the tokens that its list of
    punctuation names. The list does not name brackets in lower case, nor marks such as "?!", so these stay. Of 38,192
    sentences about photographs, one is divided otherwise than by the evaluation's Java program, which drops its emoji;
    so are web addresses and emoticons.

    >>> words("A man's dog (brown) doesn't like T-shirts at 3:30 p.m.")
    ['a', 'man', "'s", 'dog', '-lrb-', 'brown', '-rrb-', 'does', "n't", 'like', 't-shirts', 'at', '3:30', 'p.m.']
    """
    spaced = _DIVIDED.sub(r"\g<0> ", re.sub("[\u2018\u2019]", "'", text))
    tokens = (token.lower() for token in _TOKEN.findall(spaced))
    return [_BRACKETS.get(token, token) for token in tokens if token not in _DROPPED]


def bleu(candidates: Sequence[str], references: Sequence[_References]) -> tuple[float, float, float, float]:
    """BLEU-1 to BLEU-4 of a set of captions (Papineni et al. 2002, section 2.3), from 0 to 1.

    Matches, n-grams and lengths are summed over all images. The length that a candidate should have is that of the
    reference closest to its own in length, the shorter one of two.

    Args:
      candidates: a caption for each image.
      references: the captions to compare with, of each image.

    Raises:
      UserError: there is no candidate, or an image has no reference.
      ValueError: there are not as many candidates as images.
    """
    correct, total = np.zeros(_ORDERS), np.zeros(_ORDERS)
    length = target = 0
    for candidate, others in _tokenized(candidates, references):
        of_others = [_ngrams(other) for other in others]
        for order, counts in enumerate(_ngrams(candidate)):
            total[order] += counts.total()
            correct[order] += sum(
                min(count, max(other[order][gram] for other in of_others)) for gram, count in counts.items()
            )
        length += len(candidate)
        target += min((abs(len(other) - len(candidate)), len(other)) for other in others)[1]
    means = np.cumprod((correct + _TINY) / (total + _SMALL)) ** (1 / np.arange(1, _ORDERS + 1))
    ratio = (length + _TINY) / (target + _SMALL)
    first, second, third, fourth = (means * math.exp(min(0.0, 1 - 1 / ratio))).tolist()
    return first, second, third, fourth


def cider(candidates: Sequence[str], references: Sequence[_References]) -> float:
    """CIDEr-D of a set of captions (Vedantam et al. 2015, section 5), from 0 to 10; tables often give 100 times it.

    n-grams are weighted by the number of images in whose references they occur, so that the value is one of the whole
    set: that of a single image is 0.

    Args:
      candidates: a caption for each image.
      references: the captions to compare with, of each image.

    Raises:
      UserError: there is no candidate, or an image has no reference.
      ValueError: there are not as many candidates as images.
    """
    images = _tokenized(candidates, references)
    occurs: collections.Counter[_Gram] = collections.Counter()
    for _, others in images:
        occurs.update({gram for other in others for counts in _ngrams(other) for gram in counts})
    rarest = math.log(len(images))
    rarity = {gram: rarest - math.log(count) for gram, count in occurs.items()}

    def vectors(tokens: list[str]) -> list[tuple[dict[_Gram, float], float]]:
        """The weights of the n-grams of each order, and their norm."""
        orders = [{gram: n * rarity.get(gram, rarest) for gram, n in counts.items()} for counts in _ngrams(tokens)]
        return [(weights, math.sqrt(sum(weight * weight for weight in weights.values()))) for weights in orders]

    scores = []
    for candidate, others in images:
        own = vectors(candidate)
        similarity = 0.0
        for other in others:
            # The evaluation's code counts a length in pairs of words, so that an empty caption is as long as one word.
            longer = max(len(candidate), 1) - max(len(other), 1)
            cosines = sum(map(_clipped_cosine, own, vectors(other)))
            similarity += cosines / _ORDERS * math.exp(-(longer**2) / (2 * _SIGMA**2))
        scores.append(similarity / len(others))
    return 10 * float(np.mean(scores))


def _clipped_cosine(own: tuple[dict[_Gram, float], float], other: tuple[dict[_Gram, float], float]) -> float:
    """The cosine of the weights of two captions, the first one's at most those of the second; 0 if one has none."""
    (weights, norm), (other_weights, other_norm) = own, other
    common = weights.keys() & other_weights.keys()
    product = sum(min(weights[gram], other_weights[gram]) * other_weights[gram] for gram in common)
    return product / (norm * other_norm) if norm and other_norm else 0.0


def _tokenized(candidates: Sequence[str], references: Sequence[_References]) -> list[tuple[list[str], list[list[str]]]]:
    """The words of each candidate and of its references."""
    if not candidates:
        raise UserError("there is no caption to compare with references")
    for number, others in enumerate(references):
        if not others:
            raise UserError(f"image {number}, counted from 0, has no reference to compare its caption with")
    pairs = zip(candidates, references, strict=True)
    return [(words(candidate), [words(other) for other in others]) for candidate, others in pairs]


def _ngrams(tokens: list[str]) -> list[collections.Counter[_Gram]]:
    """How often each n-gram occurs, by order."""
    return [
        collections.Counter(zip(*(tokens[start:] for start in range(size)), strict=False))
        for size in range(1, _ORDERS + 1)
    ]
