"""Contact sheet of sampled images with captions and token counts, one HTML file without scripts."""

from __future__ import annotations

import base64
import html
import io

from PIL import Image

from jaxclip.data.findings import Findings

_MOST = 60
_LONGEST_CAPTION = 240

_CSS = """
:root { --paper: #fdfcfa; --ink: #22262b; --soft: #686d75; --faint: #e7e3dc; --wash: #f4f1ec; --warn: #b0482a; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171a; --ink: #e3e1dc; --soft: #989ca3; --faint: #2d3136; --wash: #202328; --warn: #e8986a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 44px 28px; overflow-wrap: anywhere; }
h1 { margin: 0 0 20px; font: 500 34px/1.15 "Iowan Old Style", Palatino, Charter, Georgia, "Liberation Serif", serif; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 3px 18px; margin: 0 0 36px; }
dt { color: var(--soft); }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.bad { color: var(--warn); }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 26px 18px; margin: 0; padding: 0;
  list-style: none; }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px; background: var(--wash); }
p { margin: 7px 0 0; font-size: 13.5px; line-height: 1.4; }
small { display: block; margin-top: 3px; color: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
.key { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
@media (max-width: 520px) {
  main { padding: 26px 16px; }
  h1 { font-size: 27px; }
  dl { grid-template-columns: 1fr; }
  dd { margin-bottom: 8px; }
  ol { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 20px 12px; }
}
"""


def page(source: str, table: list[tuple[str, str]], sampled: Findings, tokens: list[int]) -> str:
    """The contact sheet as HTML: the table, and up to 60 examples, spread evenly.

    Args:
      source: the source's name.
      table: lines of (name, value).
      sampled: the sample, with its examples.
      tokens: the number of tokens of each example's first caption.
    """
    shown = [number * len(tokens) // min(_MOST, len(tokens)) for number in range(min(_MOST, len(tokens)))]
    lines = "".join(
        f"<dt>{_escape(name)}</dt><dd{' class=bad' if name in ('skipped', 'at fault') else ''}>{_escape(value)}</dd>"
        for name, value in table
        if name != "source"
    )
    items = "".join(_item(sampled, index, tokens[index]) for index in shown)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escape(source)}</title><style>{_CSS}</style></head>"
        f"<body><main><h1>{_escape(source)}</h1><dl>{lines}</dl><ol>{items}</ol></main></body></html>\n"
    )


def _item(sampled: Findings, index: int, tokens: int) -> str:
    example = sampled.examples[index]
    caption = example.captions[0]
    excerpt = caption if len(caption) <= _LONGEST_CAPTION else caption[: _LONGEST_CAPTION - 1] + "…"
    more = f" · {len(example.captions)} captions" if len(example.captions) > 1 else ""
    width, height = example.size
    return (
        f'<li><img src="{_data_url(example.image)}" alt="">'
        f"<p>{_escape(excerpt)}</p>"
        f"<small>{tokens} tokens{more} · {width} × {height}</small>"
        f'<small class="key" title="{_escape(example.key)}">{_escape(example.key)}</small></li>'
    )


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _escape(text: str) -> str:
    return html.escape(text.encode("utf-8", errors="replace").decode(), quote=True)
