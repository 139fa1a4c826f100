"""Similarities of validation images and captions: a matrix, and the best answers in both directions of retrieval."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from jaxclip.report.gallery import Gallery
from jaxclip.report.style import DARK
from jaxclip.report.writing import cosine, escape, shortened

# Twice the largest size an image is shown at, for dense screens.
_LARGEST_EDGE = 224
_MATRIX_PAIRS = 8
_QUERIES = 6
_ANSWERS = 5


def gallery_figures(gallery: Gallery) -> dict[str, str]:
    """The three figures of a gallery as HTML by name: "matrix", "images", "captions".

    The pairs shown stand at even distances among those with distinct captions; no result picks them. A
    gallery with fewer than two distinct captions has none.
    """
    distinct = _distinct(gallery)
    if len(distinct) < 2:
        return {}
    return {
        "matrix": _matrix(gallery, _spread(distinct, _MATRIX_PAIRS, 0.0)),
        "images": "".join(_top_images(gallery, query) for query in _spread(distinct, _QUERIES, 0.35)),
        "captions": _top_captions(gallery, _spread(distinct, _QUERIES, 0.7), distinct),
    }


def _caption_key(caption: str) -> str:
    return " ".join(caption.lower().split())


def _distinct(gallery: Gallery) -> list[int]:
    """The first image of each distinct caption."""
    first: dict[str, int] = {}
    for index, caption in enumerate(gallery.captions):
        first.setdefault(_caption_key(caption), index)
    return list(first.values())


def _spread(indices: list[int], most: int, phase: float) -> list[int]:
    """At most `most` of the indices, at even distances, shifted by a phase in [0, 1) of that distance."""
    most = min(most, len(indices))
    return [indices[int((place + phase) * len(indices) / most)] for place in range(most)]


def _image(gallery: Gallery, index: int) -> str:
    small = Image.fromarray(np.ascontiguousarray(gallery.images[index]))
    small.thumbnail((_LARGEST_EDGE, _LARGEST_EDGE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img src="data:image/webp;base64,{data}" alt="{escape(gallery.captions[index])}">'


def _matrix(gallery: Gallery, pairs: list[int]) -> str:
    values = gallery.similarity[np.ix_(pairs, pairs)].T  # [caption, image]
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    head = "".join(f'<th scope="col">{_image(gallery, index)}</th>' for index in pairs)
    body = ""
    for row, caption in enumerate(pairs):
        cells = ""
        for column in range(len(pairs)):
            share = (values[row, column] - low) / (high - low) if high > low else 0.0
            share = float(np.nan_to_num(share))
            kind = f"v{' hi' if share > DARK else ''}{' own' if row == column else ''}"
            cells += f'<td class="{kind}" style="--v:{share:.3f}"><span>{cosine(values[row, column])}</span></td>'
        body += f'<tr><th scope="row">{shortened(gallery.captions[caption])}</th>{cells}</tr>'
    return (
        f'<figure><table class="heat matrix" style="--n:{len(pairs)}"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
        f'<p class="note scale"><span>{cosine(low)}</span><i></i><span>{cosine(high)}</span>'
        f'<span class="swatch held"></span>the true pair</p></figure>'
    )


def _top_images(gallery: Gallery, query: int) -> str:
    order = np.argsort(-gallery.similarity[:, query], kind="stable")
    key = _caption_key(gallery.captions[query])
    right = [_caption_key(gallery.captions[index]) == key for index in order]
    shown = ""
    for index, is_right in list(zip(order, right, strict=True))[:_ANSWERS]:
        mark = '<b class="tick" title="its own image">✓</b>' if is_right else ""
        shown += (
            f"<li{' class=right' if is_right else ''}>{_image(gallery, index)}"
            f"<small>{mark}{cosine(gallery.similarity[index, query])}</small></li>"
        )
    rank = right.index(True) + 1
    missed = f" <small>its own image comes at rank {rank} of {len(order)}</small>" if rank > _ANSWERS else ""
    caption = shortened(gallery.captions[query])
    return f'<div class="query"><p class="caption">{caption}{missed}</p><ol class="row">{shown}</ol></div>'


def _top_captions(gallery: Gallery, queries: list[int], distinct: list[int]) -> str:
    """For each image the best distinct captions, with bars on one scale from a cosine of 0."""
    similarity = gallery.similarity[:, distinct]
    ranked = {query: np.argsort(-similarity[query], kind="stable") for query in queries}
    longest = max(float(np.nan_to_num(similarity[queries]).max()), 1e-6)
    figures = ""
    for query, order in ranked.items():
        key = _caption_key(gallery.captions[query])
        right = [_caption_key(gallery.captions[distinct[place]]) == key for place in order]
        items = ""
        for place, is_right in list(zip(order, right, strict=True))[:_ANSWERS]:
            value = float(similarity[query, place])
            width = 100 * min(max(float(np.nan_to_num(value)) / longest, 0.0), 1.0)
            mark = '<b class="tick" title="its own caption">✓</b>' if is_right else ""
            items += (
                f"<li{' class=right' if is_right else ''}>"
                f'<span class="name">{shortened(gallery.captions[distinct[place]])}{mark}</span>'
                f'<span class="value">{cosine(value)}</span>'
                f'<span class="bar"><i style="width:{width:.1f}%"></i></span></li>'
            )
        rank = right.index(True) + 1
        if rank > _ANSWERS:
            own = shortened(gallery.captions[query])
            items += f'<li class="missed">its own, <q>{own}</q>, comes at rank {rank} of {len(order)}</li>'
        figures += f'<div class="answer">{_image(gallery, query)}<ol class="bars under">{items}</ol></div>'
    return figures
