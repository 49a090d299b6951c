"""Parts of an HTML page that is one file: tables, figures, text around them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from typing import Any

import pandas as pd

MAX_WIDTH, N_COLORS = 1_000, 256
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd }
h3 { font-size: 1rem; margin-top: 1.5rem }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; margin: 0.8rem 0 }
th, td { text-align: right; padding: 0.2rem 0.7rem; border-bottom: 1px solid #eee }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; margin: 0.5rem 0 }
pre { font-size: 0.8rem; overflow-x: auto; background: #f6f6f6; padding: 1rem }
.scroll { overflow-x: auto }
"""


def make_page(title: str, parts: Iterable[str]) -> str:
    """The page with its parts, empty ones left out."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(part for part in parts if part) + "\n</body></html>\n"
    )


def make_ranked_table(table: pd.DataFrame, low: Iterable[str] = (), unranked: Iterable[str] = ()) -> str:
    """Numbers to three digits, the best of each column bold: the largest, or the smallest of columns in ``low``."""
    rounded = table.astype(float).round(3)
    best = rounded.eq(rounded.max())
    for column in rounded.columns.intersection([*low]):
        best[column] = rounded[column] == rounded[column].min()
    best[rounded.columns.intersection([*unranked])] = False
    text = rounded.map("{:.3f}".format).where(rounded.notna(), "")
    if len(text) > 1:
        text = text.mask(best, "<b>" + text + "</b>")
    text.columns = [escape(str(name)) for name in text.columns]
    title, names = str(table.index.name or "").replace("_", " "), [escape(str(name)) for name in table.index]
    text.insert(0, escape(title), names, allow_duplicates=True)
    return _render(text, escape=False)


def make_table(table: pd.DataFrame) -> str:
    """Numbers to three significant digits, and text."""
    return _render(table, na_rep="", float_format="{:.3g}".format)


def _render(table: pd.DataFrame, **options: Any) -> str:
    with pd.option_context("display.max_colwidth", None):  # names in full
        return f'<div class="scroll">{table.to_html(index=False, border=0, **options)}</div>'


def embed_figure(figure: Any) -> str:
    """A figure of matplotlib inside the page."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return embed_image(buffer.getvalue(), "")


def embed_image(png: bytes, text: str) -> str:
    """As wide as the page shows it, in as many colors as figures have: a tenth of the size."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((MAX_WIDTH, 10 * MAX_WIDTH), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(N_COLORS, Image.Quantize.MAXCOVERAGE).save(buffer, format="png", optimize=True)
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
