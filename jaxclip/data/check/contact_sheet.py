"""Contact sheet of sampled images with captions, questions and token counts, one HTML file without scripts."""

from __future__ import annotations

from jaxclip.data.check.page import data_url, escape
from jaxclip.data.check.page import page as html_page
from jaxclip.data.findings import Findings
from jaxclip.data.record import Question

_MOST = 60
_MOST_QUESTIONS = 3  # of an image
_MOST_ANSWERS = 10  # of a question
_LONGEST_CAPTION = 240


def page(source: str, table: list[tuple[str, str]], sampled: Findings, tokens: list[int]) -> str:
    """The contact sheet as HTML: the table, and up to 60 examples, spread evenly.

    Args:
      source: the source's name.
      table: lines of (name, value).
      sampled: the sample, with its examples.
      tokens: the number of tokens of each example's first caption, or first question.
    """
    shown = [number * len(tokens) // min(_MOST, len(tokens)) for number in range(min(_MOST, len(tokens)))]
    items = "".join(_item(sampled, index, tokens[index]) for index in shown)
    return html_page(source, [line for line in table if line[0] != "source"], f"<ol>{items}</ol>")


def _item(sampled: Findings, index: int, tokens: int) -> str:
    example = sampled.examples[index]
    texts = [*example.captions[:1], *(_question(one, sampled) for one in example.questions[:_MOST_QUESTIONS])]
    more = f" · {len(example.captions)} captions" if len(example.captions) > 1 else ""
    more += f" · {len(example.questions)} questions" if len(example.questions) > _MOST_QUESTIONS else ""
    width, height = example.size
    return (
        f'<li><img src="{data_url(example.image)}" alt="">'
        f"{''.join(f'<p>{escape(_excerpt(text))}</p>' for text in texts)}"
        f"<small>{tokens} tokens{more} · {width} × {height}</small>"
        f'<small class="key" title="{escape(example.key)}">{escape(example.key)}</small></li>'
    )


def _question(question: Question, sampled: Findings) -> str:
    """A question with its answers and the name of its label."""
    values = [text if weight == 1 else f"{text} {weight:.0%}" for text, weight in question.answers[:_MOST_ANSWERS]]
    if question.label is not None:
        values.append(sampled.name_of(question.label))
    return f"{question.text} → {', '.join(values)}" if values else question.text


def _excerpt(text: str) -> str:
    return text if len(text) <= _LONGEST_CAPTION else text[: _LONGEST_CAPTION - 1] + "…"
