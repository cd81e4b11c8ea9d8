"""The page a person opens after a run: one file, no network."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from wsca_jax.goodput import format_lives
from wsca_jax.metrics import AttributeResult, Results, Summary
from wsca_jax.report.charts import loss_chart, map_chart, series, share_chart
from wsca_jax.report.elements import MISSING, bar, card, document, number, sort_value, sortable_head, words
from wsca_jax.report.records import TrainingReport
from wsca_jax.report.style import SCRIPT
from wsca_jax.report.tables import describe_worst_group
from wsca_jax.writers import Row, format_seconds, format_share

TIMES = "\N{MULTIPLICATION SIGN}"
# {part of a run's goodput: how it is called}, in the order of the colours.
PARTS = {
    "compile": "compiling",
    "data": "waiting for data",
    "productive": "training steps",
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
    "start": "starting",
    "lost": "lost",
    "other": "everything else",
}


def render(report: TrainingReport, rows: Sequence[Row]) -> str:
    """The whole page as HTML.

    Args:
      report: what the run was and found.
      rows: its log, for the curves.
    """
    sections = (
        _header(report),
        _headline(report),
        _charts(report, rows),
        _pseudo_labels(rows),
        _groups(report.results),
        _families(report.results),
        _attributes(report.results),
        _timings(report),
        _configuration(report),
        _environment(report),
    )
    return document(_title(report), sections, script=SCRIPT)


def _title(report: TrainingReport) -> str:
    return f"{report.schema.name}: mAP {number(report.results.overall.mAP)}"


def _header(report: TrainingReport) -> str:
    facts = (
        f"{report.results.examples:,} examples evaluated after step {report.last_step:,}",
        f"truth: {report.truth}",
        f"{report.parameters / 1e6:,.1f} M parameters, {report.trained / 1e6:,.1f} M of them trained",
        f"{report.environment['devices']} {TIMES} {report.environment['device_kind']}",
    )
    skipped = [
        f"{count:,} {what}"
        for count, what in (
            (report.skipped_examples, "training examples skipped"),
            (report.results.skipped, "evaluation examples skipped"),
            (report.skipped_steps, "steps skipped as not finite"),
        )
        if count
    ]
    schema = report.schema
    name = f"{schema.name}, {schema.num_attributes} attributes in {schema.num_groups} groups"
    return (
        f'<header><h1>{escape(name)}</h1><p class="muted">'
        f"{escape(' · '.join([*facts, *skipped]))}</p></header>"
    )


# Headline figures, each beside what no learning would reach.


def _headline(report: TrainingReport) -> str:
    results, overall = report.results, report.results.overall
    data_wait = MISSING if math.isnan(report.data_wait) else format_share(report.data_wait)
    figures = [
        ("mAP", number(overall.mAP), f"chance {number(overall.chance_mAP)}"),
        ("normalised mAP", number(overall.normalised_mAP), "0 is chance, 1 is perfect"),
        (
            "mean accuracy",
            number(overall.accuracy),
            f"majority class {number(majority_accuracy(results))}",
        ),
        ("mean balanced accuracy", number(overall.balanced_accuracy), "chance 0.500"),
        (
            "macro F1",
            number(overall.f1),
            f"CF1 {number(overall.class_f1)}, OF1 {number(overall.overall_f1)}",
        ),
        ("calibration error", number(overall.calibration_error), "0 is perfect"),
        ("images per second", f"{report.images_per_second:,.0f}", f"{data_wait} of it waiting for data"),
        ("goodput", format_share(report.goodput.share), f"of {format_seconds(report.goodput.wall)}"),
    ]
    cards = "".join(card(*figure) for figure in figures)
    return f'<section class="figures">{cards}</section>{_remarks(results)}'


def majority_accuracy(results: Results) -> float:
    """Mean accuracy of always giving each attribute's commoner answer; NaN where nothing is known."""
    values = [max(a.prevalence, 1 - a.prevalence) for a in results.attributes if a.known]
    return sum(values) / len(values) if values else math.nan


def _remarks(results: Results) -> str:
    remarks = []
    if results.worst_group is not None:
        remarks.append(describe_worst_group(results.worst_group))
    if results.overall.attributes_without_positives:
        remarks.append(
            "Without a positive example, and so left out of mAP, precision, recall and F1: "
            f"{results.overall.attributes_without_positives} of {results.overall.attributes} attributes."
        )
    if results.legacy_group_accuracy is not None:
        remarks.append(
            "Legacy group accuracy (count of positives mod K, for comparison with older figures only): "
            f"{number(results.legacy_group_accuracy.mean)}."
        )
    return "".join(f'<p class="muted" style="margin-top:12px">{escape(remark)}</p>' for remark in remarks)


def _charts(report: TrainingReport, rows: Sequence[Row]) -> str:
    # The one term that means the same in training and in validation.
    compared = any("loss/classification" in row.values for row in rows)
    title, name = ("Classification loss", "loss/classification") if compared else ("Loss", "loss")
    charts = (
        (title, loss_chart(rows, name)),
        ("mAP on the validation split", map_chart(rows, report.results.overall.chance_mAP)),
    )
    return f'<h2>Learning curves</h2><section class="charts">{_figures(charts)}</section>'


def _figures(charts: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f'<figure class="chart card"><figcaption>{title}</figcaption>{svg}</figure>' for title, svg in charts
    )


def _pseudo_labels(rows: Sequence[Row]) -> str:
    """How many entries took a pseudo label over training, and how good the votes behind them were."""
    if not any("pseudo_accepted" in row.values for row in rows):
        return ""
    kind = "hidden" if any(row.kind == "hidden" for row in rows) else "validation"
    where = "the hidden labels of training images" if kind == "hidden" else "the validation split"
    errors = series(rows, kind, "quality_ece").values
    accepted, right = "Unknown entries that take their pseudo label", f"Votes that are right, on {where}"
    shares = (
        ("train", "pseudo_accepted", "accepted"),
        (kind, "confident_fraction", "above the threshold"),
    )
    accuracies = ((kind, "accepted_accuracy", "accepted"), (kind, "vote_accuracy", "all"))
    charts = (
        (accepted, share_chart(rows, shares, accepted)),
        (right, share_chart(rows, accuracies, right)),
    )
    note = f"Expected calibration error of their quality: {number(errors[-1])}." if len(errors) else ""
    return (
        f'<h2>Pseudo labels</h2><section class="charts">{_figures(charts)}</section>'
        f'<p class="muted">{escape(note)}</p>'
    )


# Tables.


def _groups(results: Results) -> str:
    foot = f"<tr>{_group_cells(results.overall, 'all attributes')}</tr>"
    return f"<h2>Groups</h2>{_summaries('group', results.groups, f'<tfoot>{foot}</tfoot>')}"


def _families(results: Results) -> str:
    """Of attributes whose names say to which family they belong."""
    return f"<h2>Families</h2>{_summaries('family', results.families)}" if results.families else ""


def _summaries(kind: str, summaries: Sequence[Summary], foot: str = "") -> str:
    header = (kind, "attributes", "mAP", "prevalence", "accuracy", "balanced", "F1", "exact match")
    body = "".join(f"<tr>{_group_cells(summary)}</tr>" for summary in summaries)
    head = "".join(f"<th>{name}</th>" for name in header)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table>"
    return f'<div class="card wide">{table}</div>'


def _group_cells(summary: Summary, name: str = "") -> str:
    values = (
        summary.prevalence,
        summary.accuracy,
        summary.balanced_accuracy,
        summary.f1,
        summary.exact_match,
    )
    return (
        f"<td>{escape(words(name or summary.name))}</td><td>{summary.attributes}</td>"
        f"<td>{bar(summary.mAP, summary.chance_mAP)}</td>" + "".join(f"<td>{number(v)}</td>" for v in values)
    )


ATTRIBUTE_COLUMNS = (
    ("attribute", "text"),
    ("group", "text"),
    ("average precision", "number"),
    ("prevalence", "number"),
    ("accuracy", "number"),
    ("balanced", "number"),
    ("precision", "number"),
    ("recall", "number"),
    ("F1", "number"),
    ("ECE", "number"),
    ("positives", "number"),
    ("known", "number"),
)


def _attributes(results: Results) -> str:
    body = "".join(f"<tr>{_attribute_cells(attribute)}</tr>" for attribute in results.attributes)
    return (
        '<h2>Attributes</h2><p class="muted">Bars show average precision; the mark is prevalence, which is '
        "what chance reaches. ECE is the expected calibration error. A click on a heading sorts.</p>"
        '<div class="card wide"><table data-sortable>'
        f"<thead><tr>{sortable_head(ATTRIBUTE_COLUMNS)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _attribute_cells(a: AttributeResult) -> str:
    texts = "".join(
        f'<td class="left" data-value="{escape(text)}">{escape(words(text))}</td>'
        for text in (a.name, a.group)
    )
    precision = (
        f'<td data-value="{sort_value(a.average_precision)}">{bar(a.average_precision, a.prevalence)}</td>'
    )
    figures = (
        a.prevalence,
        a.accuracy,
        a.balanced_accuracy,
        a.precision,
        a.recall,
        a.f1,
        a.calibration_error,
    )
    numbers = "".join(f'<td data-value="{sort_value(v)}">{number(v)}</td>' for v in figures)
    counts = "".join(f'<td data-value="{n}">{n:,}</td>' for n in (a.positives, a.known))
    return texts + precision + numbers + counts


# What it took.


def _timings(report: TrainingReport) -> str:
    """Where the time of the whole run went; all of it, in every process that worked on it."""
    found = report.goodput
    split = "".join(
        f'<i style="width:{100 * found.part_share(part):.2f}%;background:var(--part-{i})"></i>'
        for i, part in enumerate(PARTS)
    )
    key = "".join(
        f'<span><i style="background:var(--part-{i})"></i>{name} '
        f'<span class="muted">{_seconds(found.seconds[part])}, {100 * found.part_share(part):.0f} %</span>'
        "</span>"
        for i, (part, name) in enumerate(PARTS.items())
    )
    lives = f'<p class="muted">{escape(format_lives(found))}</p>' if found.lives > 1 else ""
    return (
        '<h2>Where the time went</h2><div class="card pad">'
        f'<div class="split">{split}</div><div class="key">{key}</div>{lives}</div>'
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else format_seconds(seconds)


def _configuration(report: TrainingReport) -> str:
    changed = "".join(
        f"<tr><td><code>{escape(key)}</code></td>"
        f'<td class="left"><del>{escape(_json(default))}</del></td>'
        f'<td class="left"><ins>{escape(_json(chosen))}</ins></td></tr>'
        for key, (default, chosen) in report.changes.items()
    )
    table = (
        '<div class="card wide"><table class="wrap"><thead><tr><th>key</th><th class="left">default</th>'
        f'<th class="left">this run</th></tr></thead><tbody>{changed}</tbody></table></div>'
        if changed
        else '<p class="muted">Every key has its default.</p>'
    )
    whole = escape(json.dumps(report.config, indent=2))
    return (
        f"<h2>Configuration</h2>{table}"
        f'<details class="card" style="margin-top:12px"><summary>The whole configuration</summary>'
        f"<pre>{whole}</pre></details>"
        f'<p class="muted" style="margin:16px 0 6px">The command that reproduces the run</p>'
        f'<pre class="card">{escape(shlex.join(report.command))}</pre>'
    )


def _json(value: Any) -> str:
    return MISSING if value is None else json.dumps(value)


def _environment(report: TrainingReport) -> str:
    facts = {k: v for k, v in report.environment.items() if not isinstance(v, Mapping)}
    packages = report.environment.get("packages", {})
    return f'<h2>Environment</h2><div class="columns">{_facts(facts.items())}{_facts(packages.items())}</div>'


def _facts(items: Iterable[tuple[str, Any]]) -> str:
    rows = "".join(
        f'<tr><td>{escape(words(name))}</td><td class="left">{escape(_text(value))}</td></tr>'
        for name, value in items
    )
    return f'<div class="card"><table class="wrap"><tbody>{rows}</tbody></table></div>'


def _text(value: Any) -> str:
    return MISSING if value is None else str(value)
