"""What a finished run leaves to read: complete, self-contained, and the same for the same run."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest

from input_pipeline.batch import SpuriousFactor
from input_pipeline.schema import AttributeSchema
from wsca_jax.goodput import Goodput
from wsca_jax.metrics import Predictions, compute
from wsca_jax.report import TrainingReport, environment, format_groups, format_table, write
from wsca_jax.report.charts import Series, loss_chart, map_chart, series, smooth
from wsca_jax.report.page import majority_accuracy, render
from wsca_jax.writers import Row, RunWriter

SCHEMA = AttributeSchema.from_groups(
    "toy", ("red", "<b>bold</b>", "striped", "never"), {"colour": (0, 1), "fine_texture": (2, 3)}
)


# Forty seconds in two lives.
GOODPUT = Goodput(
    seconds={
        "productive": 16.0,
        "compile": 5.0,
        "data": 2.0,
        "checkpoint": 1.0,
        "evaluation": 3.0,
        "start": 2.0,
        "other": 1.0,
        "lost": 10.0,
    },
    lives=2,
    kept_steps=80,
    lost_steps=7,
    redone_seconds=4.0,
    restart_seconds=6.0,
    unrecorded_seconds=1.0,
    between_seconds=0.0,
)


@pytest.fixture(scope="module")
def results():
    """Attribute "never" has no positive, so several of its figures are undefined."""
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 4)) < [0.5, 0.3, 0.1, 0.0]).astype(np.uint8)
    logits = (rng.normal(size=(200, 4)) + 2 * labels - 1).astype(np.float32)
    rows = Predictions(
        logits, labels, np.ones((200, 4), bool), np.ones(200, np.float32), np.arange(200, dtype=np.int32)
    )
    return compute(rows, SCHEMA, {"light": SpuriousFactor(np.arange(200) % 2, SCHEMA.attributes)})


@pytest.fixture
def report(results) -> TrainingReport:
    return TrainingReport(
        config={"optimizer": {"learning_rate": 0.001, "name": "adamw"}, "frozen": ("trunk/.*",)},
        defaults={"optimizer": {"learning_rate": 0.0001, "name": "adamw"}, "frozen": ()},
        schema=SCHEMA,
        environment=environment(),
        parameters=1234567,
        trained=1000000,
        first_step=20,
        last_step=80,
        images=6400,
        timings={
            "compile": 5.0,
            "data_wait": 2.0,
            "step": 8.0,
            "checkpoint": 1.0,
            "evaluation": 3.0,
            "total": 20.0,
        },
        first_step_seconds={"compile": 5.0, "total": 6.5},
        save_pauses=[0.25, 0.75, 0.3],
        goodput=GOODPUT,
        results=results,
        truth="what <annotators> said",
        skipped_examples=3,
        skipped_steps=0,
        command=["wsca", "train", "--config", "a config.py"],
    )


@pytest.fixture
def workdir(tmp_path) -> Path:
    with RunWriter(tmp_path) as writer:
        for step in range(1, 81):
            writer.write(
                step, "train", {"loss": math.nan if step == 7 else 1 / step}, {"images_per_second": 9.0}
            )
            if step % 20 == 0:
                writer.write(step, "validation", {"mAP": step / 100, "loss": 2 / step})
    return tmp_path


def load(path: Path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in {path.name}"))


def test_the_page_says_where_the_time_of_all_lives_went(workdir, report):
    page = write(workdir, report).read_text()
    assert "goodput" in page
    assert "40.0 %" in page
    assert 'lost <span class="muted">10 s, 25 %</span>' in page
    assert "2 lives: 7 steps lost" in page
    whole = dataclasses.replace(report, goodput=dataclasses.replace(GOODPUT, lives=1))
    assert " lives: " not in write(workdir, whole).read_text()


# JSON.


def test_report_says_what_the_run_was_and_found(workdir, report, results):
    write(workdir, report)
    record = load(workdir / "training_report.json")
    assert record["format_version"] == 1
    assert record["command"] == "wsca train --config 'a config.py'"
    assert record["config"]["optimizer"]["learning_rate"] == 0.001
    assert AttributeSchema.from_json(record["schema"]) == SCHEMA
    assert record["parameters"] == {"total": 1234567, "trained": 1000000}
    assert record["images_per_second"] == 640.0  # 6400 images in 2 s of waiting and 8 s of steps
    assert record["data_wait"] == 0.2
    assert record["timings"]["checkpoint"] == 1.0
    assert record["first_step_seconds"]["total"] == 6.5
    assert record["save_pause_seconds"] == {"saves": 3, "median": 0.3, "largest": 0.75}
    assert record["goodput"]["goodput"] == 0.4
    assert record["goodput"]["wall_seconds"] == sum(record["goodput"]["seconds"].values()) == 40.0
    assert record["goodput"]["lost_steps"] == 7
    assert record["truth"] == "what <annotators> said"
    assert "truth: what &lt;annotators&gt; said" in (workdir / "report.html").read_text()
    assert record["skipped"] == {"examples": 3, "steps": 0}
    assert record["results"]["overall"]["mAP"] == results.overall.mAP
    assert record["results"]["attributes"][3]["average_precision"] is None
    assert [group["name"] for group in record["results"]["groups"]] == ["colour", "fine_texture"]


def test_history_holds_every_row_by_kind(workdir, report):
    write(workdir, report)
    record = load(workdir / "training_history.json")
    assert [row["step"] for row in record["train"]] == list(range(1, 81))
    assert record["train"][6]["values"]["loss"] == "nan"
    assert record["train"][2] == {"step": 3, "values": {"loss": 1 / 3}, "time": {"images_per_second": 9.0}}
    assert [row["values"]["mAP"] for row in record["validation"]] == [0.2, 0.4, 0.6, 0.8]


def test_environment_names_versions_and_devices():
    found = environment()
    assert found["packages"]["jax"] == jax.__version__
    assert found["devices"] == len(jax.devices())
    assert found["backend"] == "cpu"
    assert found["host_cores"] >= 1
    json.dumps(found, allow_nan=False)


def test_changes_are_the_keys_that_differ(report):
    assert report.changes == {"optimizer.learning_rate": (0.0001, 0.001), "frozen": ([], ["trunk/.*"])}


def test_writing_leaves_no_partial_file_and_the_same_bytes(workdir, report):
    page = write(workdir, report)
    before = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    assert set(before) == {"metrics.jsonl", "training_history.json", "training_report.json", page.name}
    write(workdir, report)
    assert {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()} == before


def test_plotting_is_imported_only_to_plot():
    script = "import sys, wsca_jax.report; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


# The page.


class Reader(HTMLParser):
    """Checks that tags balance; collects references, texts and the cells of each table row."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def read_page(workdir, report) -> tuple[str, Reader]:
    text = write(workdir, report).read_text(encoding="utf-8")
    return text, Reader(text)


def test_page_is_whole_and_loads_nothing(workdir, report):
    text, page = read_page(workdir, report)
    assert all(reference.startswith("#") for reference in page.references)
    assert {"link", "img", "iframe"}.isdisjoint(page.tags)
    assert "@import" not in text
    assert "url(http" not in text
    assert text.count("<svg") == 2


def test_page_has_a_row_for_each_group_and_attribute(workdir, report, results):
    _, page = read_page(workdir, report)
    first = results.attributes[0]
    assert [
        "red",
        "colour",
        *(
            f"{v:.3f}"
            for v in (
                first.average_precision,
                first.prevalence,
                first.accuracy,
                first.balanced_accuracy,
                first.precision,
                first.recall,
                first.f1,
                first.calibration_error,
            )
        ),
        str(first.positives),
        "200",
    ] in page.rows
    names = [row[0] for row in page.rows]
    assert {"colour", "fine texture", "all attributes", "never"} <= set(names)


def test_page_has_families_where_names_have_them(report, results):
    assert "Families" not in render(report, [])
    wing = dataclasses.replace(results.groups[0], name="has_wing_color")
    page = render(dataclasses.replace(report, results=dataclasses.replace(results, families=(wing,))), [])
    assert "<h2>Families</h2>" in page
    assert "<td>has wing color</td>" in page


def test_page_escapes_what_a_schema_may_hold(workdir, report):
    text, page = read_page(workdir, report)
    assert "<b>bold" not in text
    assert "<b>bold</b>" in [row[0] for row in page.rows]


def test_page_shows_undefined_figures_as_dashes_that_sort_last(workdir, report):
    text, page = read_page(workdir, report)
    never = next(row for row in page.rows if row[0] == "never")
    assert never[2] == "\N{EN DASH}"
    assert "nan" not in str(page.rows)
    assert '<td data-value=""><div class="with-bar">' in text


def test_page_stands_chance_beside_the_headlines(workdir, report, results):
    text, _ = read_page(workdir, report)
    assert f"chance {results.overall.chance_mAP:.3f}" in text
    assert f"majority class {majority_accuracy(results):.3f}" in text
    assert "3 training examples skipped" in text


def test_majority_accuracy_by_hand(results):
    """Prevalence p answered with the commoner value is right max(p, 1 - p) of the time."""
    attributes = tuple(
        dataclasses.replace(a, prevalence=p)
        for a, p in zip(results.attributes, (0.5, 0.3, 0.9, 0.0), strict=True)
    )
    assert majority_accuracy(dataclasses.replace(results, attributes=attributes)) == pytest.approx(3.1 / 4)


# Curves.


def test_curves_leave_out_what_is_not_finite():
    rows = [Row(s, "train", {"loss": v}) for s, v in ((1, 1.0), (2, math.nan), (3, math.inf), (4, 0.5))]
    found = series([*rows, Row(5, "train", {"other": 1.0}), Row(6, "test", {"loss": 9.0})], "train", "loss")
    assert found.steps.tolist() == [1, 4]
    assert found.values.tolist() == [1.0, 0.5]


def test_smoothing_averages_neighbours():
    steps = np.arange(80.0)
    assert smooth(Series(steps, np.full(80, 3.0))).values == pytest.approx(np.full(80, 3.0))
    assert smooth(Series(steps, steps)).values[5:-5] == pytest.approx(steps[5:-5])
    spike = smooth(Series(steps, (steps == 40) * 5.0)).values  # 80 points reach 2 to each side
    assert spike[37:44] == pytest.approx([0, 1, 1, 1, 1, 1, 0])


def test_charts_of_a_run_without_evaluations_are_drawn():
    assert "<svg" in loss_chart([Row(1, "train", {"loss": 1.0})])
    assert "chance 0.250" in map_chart([], 0.25)


@pytest.mark.parametrize(
    ("name", "title"), [("loss/classification", ">Classification loss<"), ("loss", ">Loss<")]
)
def test_the_loss_that_training_and_validation_share_is_drawn(tmp_path, report, name, title):
    with RunWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": 5.0, name: 0.5})
        writer.write(2, "train", {"loss": 4.0, name: 0.4})
        writer.write(2, "validation", {name: 0.25})
    page = write(tmp_path, report).read_text()
    assert title in page
    assert "train 0.400" in page
    assert "validation 0.250" in page


@pytest.mark.parametrize(
    ("kind", "where"), [("hidden", "hidden labels of training images"), ("validation", "validation split")]
)
def test_a_run_with_pseudo_labels_shows_how_many_and_how_good(tmp_path, report, kind, where):
    with RunWriter(tmp_path) as writer:
        for step, right in ((1, 0.6), (2, 0.75)):
            writer.write(step, "train", {"loss": 1.0, "pseudo_accepted": step / 10})
            writer.write(step, "validation", {"mAP": 0.5, "vote_accuracy": 0.11, "quality_ece": 0.5})
            figures = {"vote_accuracy": right, "accepted_accuracy": 0.9375, "confident_fraction": 0.25}
            writer.write(step, kind, {"mAP": 0.5, **figures, "quality_ece": 0.0625})
    page = write(tmp_path, report).read_text()
    assert f"Votes that are right, on the {where}" in page
    shares = ("accepted 0.200", "above the threshold 0.250")
    for shown in (*shares, "accepted 0.938", "all 0.750", "quality: 0.062"):
        assert shown in page, shown


def test_charts_take_their_colours_from_the_page(workdir):
    chart = map_chart([Row(1, "validation", {"mAP": 0.5}), Row(2, "validation", {"mAP": 0.6})], 0.2)
    assert "var(--accent)" in chart
    assert "#0102" not in chart


# The terminal.


def test_groups_as_a_table(results):
    colour, texture, overall = (*results.groups, results.overall)

    def figures(s):
        values = (s.prevalence, s.mAP, s.accuracy, s.balanced_accuracy, s.f1)
        return "  ".join(f"{v:.3f}".rjust(w) for v, w in zip(values, (10, 5, 8, 17, 5), strict=True))

    assert format_groups(results).splitlines() == [
        "group           attributes  prevalence    mAP  accuracy  balanced accuracy     F1",
        "-" * 81,
        "colour                   2  " + figures(colour),
        "fine_texture             2  " + figures(texture),
        "-" * 81,
        "all attributes           4  " + figures(overall),
    ]


def test_undefined_figures_are_dashes(results):
    empty = dataclasses.replace(results.groups[0], mAP=math.nan)
    line = format_groups(dataclasses.replace(results, groups=(empty,))).splitlines()[2]
    assert line.split()[3] == "-"


def test_tables_align_columns():
    text = format_table(("name", "n"), [("a", "1"), ("long name", "10")])
    assert text.splitlines() == ["name        n", "-------------", "a           1", "long name  10"]
