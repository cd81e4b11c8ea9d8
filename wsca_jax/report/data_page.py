"""The page a person opens after `wsca verify`: what is in a data set, with pictures. One file, no network."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from input_pipeline.storage.verify import Shown, SplitReport, VerifyReport
from wsca_jax.engine.storage import write_atomically
from wsca_jax.errors import WscaError
from wsca_jax.report.elements import MISSING, bar, card, document, sort_value, sortable_head, words
from wsca_jax.report.style import CHIPS, SCRIPT

PAGE_FILE = "verify.html"
REPEATED_FILE = "in_two_splits.txt"
LISTED = 200  # problems and repeated images; what is more is counted, and of the latter in `REPEATED_FILE`
NAMED = 60  # attributes of one example, of each kind

OWN_CSS = """
a { color: var(--accent); text-decoration: none; }
.examples {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 12px; align-items: start;
}
.example { display: flex; gap: 14px; padding: 12px; font-size: 13px; align-items: flex-start; }
.picture { position: relative; flex: none; line-height: 0; }
.picture img { border-radius: 6px; }
.picture i { position: absolute; border: 2px solid #ffffff; outline: 1px solid #000000; border-radius: 2px; }
.example b { font-weight: 600; overflow-wrap: anywhere; }
.example details { color: var(--muted); }
.example summary { padding: 2px 0; }
.chips { margin: 6px 0; }
ul { margin: 0; padding: 12px 16px 12px 34px; font-size: 14px; overflow-wrap: anywhere; }
"""


def write(folder: Path, report: VerifyReport) -> Path:
    """Writes the page into a folder, made if absent; returns its path. All images in two splits go beside it.

    Raises:
      WscaError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPEATED_FILE).unlink(missing_ok=True)
        if report.repeated:
            write_atomically(folder / REPEATED_FILE, "".join(f"{line}\n" for line in report.repeated))
        write_atomically(folder / PAGE_FILE, render(report))
    except OSError as error:
        raise WscaError(f"{folder}: cannot be written: {error.strerror}; choose another --output") from error
    return folder / PAGE_FILE


def render(report: VerifyReport) -> str:
    """The whole page as HTML. Its size is bounded by the schema, not by how many examples there are."""
    schema = report.schema
    sections = (
        f"<header><h1>{escape(schema.name)}</h1>"
        f'<p class="muted">{escape(str(report.path))} · {schema.num_attributes} attributes in '
        f"{schema.num_groups} groups</p><p>{_links(report)}</p></header>",
        _headline(report),
        _lines("Problems", report.problems),
        _lines("Images in two splits", report.repeated),
        *(_examples(report, split) for split in report.splits),
        _attributes(report),
    )
    return document(f"{schema.name}: what is in it", sections, css=CHIPS + OWN_CSS, script=SCRIPT)


def _links(report: VerifyReport) -> str:
    places = {f"examples: {split.split}": split.split for split in report.splits} | {
        "attributes": "attributes"
    }
    return " · ".join(f'<a href="#{escape(place)}">{escape(name)}</a>' for name, place in places.items())


def _headline(report: VerifyReport) -> str:
    cards = [
        *(card(split.split, f"{split.examples:,}", _readable(split)) for split in report.splits),
        card("problems", f"{len(report.problems):,}", "damaged files, records or images"),
        card("in two splits", f"{len(report.repeated):,}", "images that are the same"),
        card("labels known", _percent(_known(report)), "of all splits and attributes"),
    ]
    return f'<section class="figures">{"".join(cards)}</section>'


def _readable(split: SplitReport) -> str:
    return "all readable" if split.readable == split.examples else f"{split.readable:,} of them readable"


def _known(report: VerifyReport) -> float:
    """The share of known labels among those of readable examples; NaN without any."""
    readable = sum(split.readable for split in report.splits)
    known = sum(split.readable * sum(split.known_rate) for split in report.splits if split.readable)
    return known / (readable * report.schema.num_attributes) if readable else math.nan


def _percent(share: float) -> str:
    return MISSING if math.isnan(share) else f"{100 * share:.1f} %"


def _lines(heading: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines[:LISTED])
    more = f"<li>and {len(lines) - LISTED:,} more</li>" if len(lines) > LISTED else ""
    return f'<h2>{heading}</h2><div class="card"><ul>{items}{more}</ul></div>'


def _attributes(report: VerifyReport) -> str:
    columns = [("attribute", "text"), ("group", "text")]
    for split in report.splits:
        columns += [(f"{split.split}: present", "number"), ("known", "number")]
    body = "".join(f"<tr>{_attribute_cells(report, a)}</tr>" for a in range(report.schema.num_attributes))
    return (
        '<h2 id="attributes">Attributes</h2><p class="muted">Present: of what is known. A click on a heading '
        "sorts.</p>"
        f'<div class="card wide"><table data-sortable><thead><tr>{sortable_head(columns)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _attribute_cells(report: VerifyReport, attribute: int) -> str:
    schema = report.schema
    texts = "".join(
        f'<td class="left" data-value="{escape(text)}">{escape(words(text))}</td>'
        for text in (schema.attributes[attribute], schema.groups[schema.group_of[attribute]])
    )
    rates = "".join(
        f'<td data-value="{sort_value(positive)}">{bar(positive)}</td>'
        f'<td data-value="{sort_value(known)}">{_percent(known)}</td>'
        for positive, known in (
            (split.positive_rate[attribute], split.known_rate[attribute]) for split in report.splits
        )
    )
    return texts + rates


def _examples(report: VerifyReport, split: SplitReport) -> str:
    shown = "".join(_example(example, report.schema.attributes) for example in split.shown)
    note = f"{len(split.shown)} of {split.examples:,}, evenly spaced; the frame is the labelled object"
    if all(example.box is None for example in split.shown):
        note = note.partition(";")[0]
    return (
        f'<h2 id="{escape(split.split)}">Examples: {escape(split.split)}</h2><p class="muted">{note}.</p>'
        f'<section class="examples">{shown}</section>'
    )


def _example(example: Shown, attributes: Sequence[str]) -> str:
    flags = list(zip(attributes, example.labels, example.known, strict=True))
    present = [name for name, label, known in flags if known and label]
    unknown = [name for name, _, known in flags if not known]
    absent = len(flags) - len(present) - len(unknown)
    more = f" · {len(unknown)} unknown" if unknown else ""
    names = f"<p>{escape(_listed(unknown))}</p>" if unknown else ""
    chips = "".join(f"<span>{escape(words(name))}</span>" for name in present[:NAMED])
    if len(present) > NAMED:
        chips += f"<span>and {len(present) - NAMED} more</span>"
    summary = f"{absent} absent{more}"
    rest = f"<details><summary>{summary}</summary>{names}</details>" if names else f"<p>{summary}</p>"
    return (
        f'<div class="example card">{_picture(example)}<div><b>{escape(example.key)}</b>'
        f'<div class="chips">{chips}</div>{rest}</div></div>'
    )


def _listed(names: Iterable[str]) -> str:
    shown = [words(name) for name in names]
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return ", ".join(shown[:NAMED]) + more


def _picture(example: Shown) -> str:
    data = base64.b64encode(example.thumbnail).decode()
    frame = ""
    if example.box is not None:
        top, left, height, width = (f"{100 * side:.1f}%" for side in example.box)
        frame = f'<i style="top:{top};left:{left};height:{height};width:{width}"></i>'
    return (
        f'<div class="picture"><img src="data:image/jpeg;base64,{data}" alt="{escape(example.key)}">'
        f"{frame}</div>"
    )
