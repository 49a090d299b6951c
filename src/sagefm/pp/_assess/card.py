"""The trust card as text and as HTML."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from sagefm._utils import shorten

COLORS = {"fine": "#2166ac", "with care": "#b35806", "outside what the model knows": "#b2182b", "unknown": "#666666"}


def to_text(found: dict[str, Any]) -> str:
    """Card in lines."""
    checks = found["checks"]
    lines = [headline(found), ""]
    width = max(len(name) for name in checks.index)
    level = max(len(verdict) for verdict in checks["verdict"])
    for name, row in checks.iterrows():
        lines.append(f"  {name:<{width}}  {row['verdict']:<{level}}  {row['text']}.")
    return "\n".join([*lines, "", *(f"  {line}" for line in remarks(found))])


def to_html(found: dict[str, Any]) -> str:
    """Card as a page of its own."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Trust card</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #ddd }}
</style></head><body>
{to_fragment(found)}
</body></html>
"""


def to_fragment(found: dict[str, Any]) -> str:
    """Card as a part of a page."""
    rows = "\n".join(
        f'<tr><th>{escape(str(name))}</th><td style="font-weight:600;color:{COLORS[row["verdict"]]}">'
        f"{escape(row['verdict'])}</td><td>{escape(row['text'])}.</td></tr>"
        for name, row in found["checks"].iterrows()
    )
    lines = "\n".join(f"<p>{escape(line)}</p>" for line in remarks(found))
    style = f"font-size:1.3rem;border:0;border-left:.5rem solid {COLORS[found['verdict']]};padding-left:.8rem"
    return f"""<h2 style="{style}">{escape(headline(found))}</h2>
<table>
{rows}
</table>
{lines}"""


def headline(found: dict[str, Any]) -> str:
    """Verdict, model and slide."""
    params = found["params"]
    return f"{params['model']} on {params['n_spots']:,} spots: {found['verdict']}"


def remarks(found: dict[str, Any]) -> list[str]:
    """What to know besides the checks."""
    lines = []
    verdicts = found["slides"]["verdict"]
    if len(verdicts) > 1:
        of_level = {level: verdicts.index[verdicts == level].astype(str).tolist() for level in COLORS}
        lines += [f"{level.capitalize()}: {shorten(names)}." for level, names in of_level.items() if names]
    if np.isfinite(found["expected_r"]):
        lines.append(
            f"Genes missing from the slide are expected to be predicted with r ≈ {found['expected_r']:.2f} "
            f"(± {found['expected_r_sd']:.2f} between donors), and {found['expected_r_beyond_depth']:.2f} beyond depth."
        )
    else:
        lines.append(
            f"{found['params']['model']} carries no calibration, so genes that the slide lacks can't be judged."
        )
    if len(found["markers_unknown"]):
        lines.append(f"The model doesn't know {', '.join(found['markers_unknown'])}.")
    if len(found["markers_missing"]):
        lines.append(f"It knows but the slide lacks {', '.join(found['markers_missing'])}.")
    return lines
