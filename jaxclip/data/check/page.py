"""HTML pages of images without scripts, shared by the contact sheets of sources and of recipes."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

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
section { margin: 0 0 40px; padding-top: 22px; border-top: 1px solid var(--faint); }
h2 { margin: 0 0 4px; font-size: 16px; font-weight: 600; }
h3 { margin: 16px 0 6px; color: var(--soft); font-weight: 400; font-size: 13.5px; }
h3 + p { margin-top: 0; }
figure { margin: 0; }
figcaption { margin-top: 5px; font-size: 12.5px; }
.crops { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px; }
.tokens { display: flex; flex-wrap: wrap; gap: 3px; margin-top: 5px; }
.tokens span { padding: 0 5px; border-radius: 4px; background: var(--wash); font-size: 12.5px; white-space: pre; }
@media (max-width: 520px) {
  .crops { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 10px; }
  main { padding: 26px 16px; }
  h1 { font-size: 27px; }
  dl { grid-template-columns: 1fr; }
  dd { margin-bottom: 8px; }
  ol { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 20px 12px; }
}
"""


def page(title: str, table: Sequence[tuple[str, str]], body: str) -> str:
    """A page as HTML.

    Args:
      title: the heading.
      table: lines of (name, value) below it.
      body: HTML.
    """
    lines = "".join(
        f"<dt>{escape(name)}</dt><dd{' class=bad' if name in ('skipped', 'at fault') else ''}>{escape(value)}</dd>"
        for name, value in table
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>"
        f"<body><main><h1>{escape(title)}</h1><dl>{lines}</dl>{body}</main></body></html>\n"
    )


def data_url(image: Image.Image) -> str:
    """An image as the source of an <img>; small ones without loss."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=85, lossless=max(image.size) <= 64)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def escape(text: str) -> str:
    """Text for HTML, whatever it holds."""
    return html.escape(text.encode("utf-8", errors="replace").decode(), quote=True)
