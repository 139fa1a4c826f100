"""Contact sheet of sampled images with captions and token counts, one HTML file without scripts."""

from __future__ import annotations

from jaxclip.data.check.page import data_url, escape
from jaxclip.data.check.page import page as html_page
from jaxclip.data.findings import Findings

_MOST = 60
_LONGEST_CAPTION = 240


def page(source: str, table: list[tuple[str, str]], sampled: Findings, tokens: list[int]) -> str:
    """The contact sheet as HTML: the table, and up to 60 examples, spread evenly.

    Args:
      source: the source's name.
      table: lines of (name, value).
      sampled: the sample, with its examples.
      tokens: the number of tokens of each example's first caption.
    """
    shown = [number * len(tokens) // min(_MOST, len(tokens)) for number in range(min(_MOST, len(tokens)))]
    items = "".join(_item(sampled, index, tokens[index]) for index in shown)
    return html_page(source, [line for line in table if line[0] != "source"], f"<ol>{items}</ol>")


def _item(sampled: Findings, index: int, tokens: int) -> str:
    example = sampled.examples[index]
    caption = example.captions[0]
    excerpt = caption if len(caption) <= _LONGEST_CAPTION else caption[: _LONGEST_CAPTION - 1] + "…"
    more = f" · {len(example.captions)} captions" if len(example.captions) > 1 else ""
    width, height = example.size
    return (
        f'<li><img src="{data_url(example.image)}" alt="">'
        f"<p>{escape(excerpt)}</p>"
        f"<small>{tokens} tokens{more} · {width} × {height}</small>"
        f'<small class="key" title="{escape(example.key)}">{escape(example.key)}</small></li>'
    )
