"""The page around the figures: one HTML file beside its pictures, no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.schema import AttributeSchema
from wsca_jax.inside import OnObject
from wsca_jax.report.elements import MISSING, card, document
from wsca_jax.report.style import CHIPS
from wsca_jax.visualize.drawing import words
from wsca_jax.visualize.gather import Averages, Examples

TIMES = "\N{MULTIPLICATION SIGN}"
OWN_CSS = """
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.picture { background: #ffffff; border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px;
  margin: 0 0 12px; overflow-x: auto; }
.example { margin: 28px 0 12px; }
.example h3 { font-size: 15px; margin: 0 0 6px; }
"""


class Section(NamedTuple):
    """A part of the page: a heading, what to look for, and pictures by file name; or why it is left out."""

    heading: str
    note: str
    pictures: Sequence[str] = ()


class Facts(NamedTuple):
    """What the page says of the run it shows."""

    workdir: str
    step: int
    split: str


def render(
    facts: Facts,
    schema: AttributeSchema,
    examples: Examples,
    averages: Averages,
    pictures: Sequence[str],
    sections: Sequence[Section],
    left_out: Mapping[str, str],
) -> str:
    """The whole page as HTML.

    Args:
      facts: which run, checkpoint and split.
      schema: names of attributes and groups.
      examples: whose predictions are set beside the truth.
      averages: for the figures at the top.
      pictures: for each example, the file name of its picture.
      sections: the parts after the examples.
      left_out: {module or part: why it is not shown}.
    """
    title = f"Inside {facts.workdir}"
    facts_line = f"{schema.name} · step {facts.step:,} · {facts.split} split"
    body = (
        f'<header><h1>{escape(title)}</h1><p class="muted">{escape(facts_line)}</p></header>',
        _headline(averages),
        *(f'<p class="muted">Left out: {escape(part)}. {escape(why)}</p>' for part, why in left_out.items()),
        "<h2>Examples</h2>",
        _how_to_read(examples),
        *(_example(examples, number, picture, schema) for number, picture in enumerate(pictures)),
        *(_section(section) for section in sections),
    )
    return document(title, body, css=OWN_CSS + CHIPS)


def _headline(averages: Averages) -> str:
    on_object = {
        "attribute maps": averages.attributes_on_object,
        "group attention": averages.groups_on_object,
    }
    cards = [
        card("attention on the object", _times(found), name)
        for name, found in on_object.items()
        if found is not None
    ]
    if averages.routing is not None:
        load = averages.routing.load
        cards.append(card("largest expert's load", f"{load.max():.2f}", f"uniform is {1 / len(load):.2f}"))
    if averages.graph is not None and len(averages.graph.edges) > 1:
        edges = averages.graph.edges[~np.eye(len(averages.graph.edges), dtype=bool)]
        cards.append(card("mean edge between groups", f"{edges.mean():.3f}", "between 0 and 1"))
    note = f'<p class="muted" style="margin-top:12px">Averages over {averages.examples:,} examples.</p>'
    return f'<section class="figures">{"".join(cards)}</section>{note}' if cards else ""


def _times(found: OnObject) -> str:
    return MISSING if math.isnan(found.overall) else f"{found.overall:.1f}{TIMES} uniform"


def _how_to_read(examples: Examples) -> str:
    if examples.maps.groups is None:
        return ""
    return (
        '<p class="muted">Colour shows where the model looks; what it does not look at fades to grey. Above, '
        "where each group attends. Below, for the likeliest attributes, the tokens that speak for the "
        "attribute more than what its group reads elsewhere, with its probability: \N{CHECK MARK} where it "
        "is present, \N{BALLOT X} where it is not, ? where nobody knows.</p>"
    )


def _example(examples: Examples, number: int, picture: str, schema: AttributeSchema) -> str:
    return (
        f'<div class="example"><h3>Example {number}</h3>{_chips(examples, number, schema)}</div>'
        f"{_picture(picture, f'attention maps of example {number}')}"
    )


def _chips(examples: Examples, number: int, schema: AttributeSchema) -> str:
    """Every attribute that is present or predicted, and what is wrong about it."""
    predicted = examples.probability[number] > 0.5
    known, present = examples.known[number], examples.labels[number] > 0
    kinds: tuple[tuple[str, Any, str], ...] = (
        ("right", known & present & predicted, ""),
        ("missed", known & present & ~predicted, ' class="wrong"'),
        ("not there", known & ~present & predicted, ' class="wrong"'),
        ("unknown, predicted", ~known & predicted, ""),
    )
    lines = []
    for name, chosen, style in kinds:
        chips = "".join(
            f"<span{style}>{escape(words(schema.attributes[a]))} {examples.probability[number, a]:.2f}</span>"
            for a in np.flatnonzero(chosen)
        )
        lines.append(f'<div class="chips"><b>{name}</b>{chips}</div>' if chips else "")
    return "".join(lines)


def _section(section: Section) -> str:
    pictures = "".join(_picture(name, section.heading) for name in section.pictures)
    return f'<h2>{escape(section.heading)}</h2><p class="muted">{escape(section.note)}</p>{pictures}'


def _picture(name: str, description: str) -> str:
    return f'<div class="picture"><img src="{escape(name)}" alt="{escape(description)}" loading="lazy"></div>'
