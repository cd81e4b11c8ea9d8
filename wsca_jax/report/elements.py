"""Pieces that every page is made of. What is not markup already is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from wsca_jax.report.style import CSS

MISSING = "\N{EN DASH}"


def document(title: str, sections: Iterable[str], *, css: str = "", script: str = "") -> str:
    """A whole page in one file that loads nothing.

    Args:
      title: plain text.
      sections: markup of the body, in order.
      css: the page's own, after what all pages share.
      script: what runs once the page is there.
    """
    run = f"\n<script>{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + f"\n</main>{run}\n</body>\n</html>\n"
    )


def card(name: str, figure: str, note: str) -> str:
    """A headline figure, with its name above and a remark below."""
    return (
        f'<div class="figure card"><span>{escape(name)}</span><b>{escape(figure)}</b>'
        f"<span>{escape(note)}</span></div>"
    )


def bar(value: float, mark: float = math.nan) -> str:
    """A figure in [0, 1] as a number and a bar, with a mark on it where there is one."""
    fill = "" if math.isnan(value) else f'<i style="width:{100 * value:.1f}%"></i>'
    tick = "" if math.isnan(mark) else f'<u style="left:{100 * mark:.1f}%"></u>'
    return f'<div class="with-bar"><span>{number(value)}</span><div class="bar">{fill}{tick}</div></div>'


def number(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.3f}"


def sort_value(value: float) -> str:
    """What a table sorts by; empty sorts last."""
    return "" if math.isnan(value) else repr(value)


def sortable_head(columns: Iterable[tuple[str, str]]) -> str:
    """Headings that sort by a click, each given as (name, "text" or "number")."""
    return "".join(
        f'<th data-kind="{kind}"{_left(kind)}><button type="button">{escape(name)}</button></th>'
        for name, kind in columns
    )


def _left(kind: str) -> str:
    return ' class="left"' if kind == "text" else ""


def words(name: str) -> str:
    return name.replace("_", " ").replace("::", ": ")
