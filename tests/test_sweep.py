"""Sweeps: what is left to do by what lies on the disk, and the tables."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from interrupts import HEAR_INTERRUPTS
from sweep_files import example, writer

from input_pipeline import scenes
from input_pipeline.batch import SpuriousFactor
from wsca_jax import cli, config
from wsca_jax import sweep as sweeps
from wsca_jax.engine import manifest
from wsca_jax.engine.record import write_run_record
from wsca_jax.errors import ExitCode, WscaError
from wsca_jax.evaluations import (
    NO_FACTORS,
    Factors,
    figures_path,
    read_factors,
    read_figures,
    read_predictions,
    write_evaluation,
)
from wsca_jax.metrics import Predictions, bootstrap, compute
from wsca_jax.metrics.worst_group import resampled_worst_group
from wsca_jax.sweep import definition, runs
from wsca_jax.writers import RunWriter

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = "configs/sweeps/scenes.py:tiny"
PATIENCE = 600  # seconds for processes that train, on a busy machine


@pytest.fixture
def sweep_file(tmp_path):
    return writer(tmp_path)


# What is left to do.


def predictions(seed: int, signal: float, rows: int = 160) -> Predictions:
    """Of one set of images whatever the seed; a higher signal ranks them better."""
    labels = (np.random.default_rng(0).random((rows, 36)) < 0.4).astype(np.uint8)
    logits = signal * labels + np.random.default_rng(seed + 1).normal(size=labels.shape) - 0.5 * signal
    return Predictions(
        logits.astype(np.float32),
        labels,
        np.ones(labels.shape, bool),
        np.ones(rows, np.float32),
        np.arange(rows, dtype=np.int32),
    )


def pretend_to_train(run: runs.SweepRun, images_per_second: float = 100.0) -> None:
    write_run_record(run.workdir, config.to_json(run.config), scenes.SCHEMA)
    folder = run.workdir / "checkpoints" / str(run.steps)
    folder.mkdir(parents=True)
    (folder / "state").write_text("arrays")
    manifest.write(folder)
    with RunWriter(run.workdir) as writer:
        for step, rate in enumerate((float("nan"), 3.0, images_per_second, images_per_second, 1e6), 1):
            writer.write(step, "train", {"loss": 1.0}, {"images_per_second": rate})


def pretend_to_evaluate(run: runs.SweepRun, signal: float = 1.0, factors=NO_FACTORS, **changes) -> None:
    found = predictions(run.seed, signal)
    figures = {
        "step": run.steps,
        "data_dir": run.config.data.dir,
        "captions": False,
        "parameters": 1_250_000,
        "results": compute(found, scenes.SCHEMA).to_json(),
    }
    write_evaluation(run.workdir, "validation", figures | changes, found, factors)


@pytest.fixture
def planned(sweep_file, tmp_path):
    spec = sweep_file(example())
    return spec, runs.plan(definition.load(spec), tmp_path / "w")


def test_the_disk_says_what_is_left_to_do(planned):
    run = planned[1][3]
    assert (run.name, run.steps) == ("wide/seed_1", 12)
    assert run.next_command() == run.train_command()
    pretend_to_train(run)
    assert run.next_command()[3:] == [
        "evaluate",
        "--workdir",
        str(run.workdir),
        "--split",
        "validation",
    ]
    pretend_to_evaluate(run, step=6)  # of an earlier step
    assert run.next_command()[3] == "evaluate"
    pretend_to_evaluate(run)
    assert run.next_command() is None
    figures_path(run.workdir, "validation").write_text("{")
    assert run.next_command()[3] == "evaluate"
    pretend_to_evaluate(run)
    (run.workdir / "checkpoints" / "12" / "state").write_text("damaged")
    assert run.next_command() == run.train_command()


def test_every_row_is_run_with_the_first_seed_before_any_with_the_next(planned):
    spec, planned_runs = planned
    sweep = definition.load(spec)
    names = [run.name for run in runs.chosen(planned_runs, sweep, ["wide-tenth", "plain"])]
    assert names == ["plain/seed_0", "wide-tenth/seed_0", "plain/seed_1", "wide-tenth/seed_1"]
    assert len(runs.chosen(planned_runs, sweep, [])) == len(planned_runs)


def test_the_command_of_a_run_gives_its_configuration(planned):
    run = planned[1][5]
    options, rest = cli.build_parser().parse_known_args(run.train_command()[3:])
    assert options.workdir == run.workdir
    assert config.flat(config.load(options.config, rest)) == config.flat(run.config)
    assert run.config.seed == 1
    assert run.config.weak_labels.known_fraction == 0.1


def test_a_folder_of_another_configuration_is_refused_by_its_keys(planned, sweep_file, tmp_path, capsys):
    pretend_to_train(planned[1][2])
    changed = example()
    changed["rows"]["wide"]["model.hidden_size"] = 64
    words = ["sweep", "--sweep", sweep_file(changed), "--workdir", str(tmp_path / "w")]
    assert cli.main(words) == ExitCode.BAD_INPUT
    message = capsys.readouterr().err
    assert "wide/seed_0" in message
    assert "model.hidden_size: 32 -> 64" in message


def test_what_may_change_in_a_finished_run_is_taken_over_and_evaluated_again(planned):
    run = planned[1][0]
    pretend_to_train(run)
    pretend_to_evaluate(run)
    with run.config.unlocked():
        run.config.evaluation.captions = True
    run.check_record()
    assert run.next_command()[3] == "evaluate"
    assert json.loads((run.workdir / "run.json").read_text())["config"]["evaluation"]["captions"] is True
    pretend_to_evaluate(run, captions=True)
    assert run.next_command() is None


# The whole command, on runs that are there already.

SIGNALS = {"plain": 0.6, "wide": 2.0, "wide-tenth": 2.0}


@pytest.fixture
def finished(planned):
    """Every run finished but wide-tenth/seed_1; "wide" ranks far better than "plain", and is slower."""
    spec, planned_runs = planned
    for run in planned_runs[:-1]:
        pretend_to_train(run, 50.0 if run.row.name == "wide" else 100.0)
        pretend_to_evaluate(run, SIGNALS[run.row.name])
    return spec, planned_runs


def sweep_again(finished, *words: str) -> int:
    spec, planned_runs = finished
    workdir = planned_runs[0].workdir.parent.parent
    return cli.main(["sweep", "--sweep", spec, "--workdir", str(workdir), *words])


def test_finished_runs_are_not_started_again_and_the_tables_hold_their_figures(finished, capsys):
    assert sweep_again(finished, "--only", "plain", "wide") == ExitCode.DONE
    text = capsys.readouterr().out
    workdir = finished[1][0].workdir.parent.parent
    record = json.loads((workdir / "sweep.json").read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert record["unfinished"] == ["wide-tenth/seed_1"]
    assert rows["wide-tenth"]["seeds"] == [0]
    first, second = ([predictions(seed, SIGNALS[name]) for seed in (0, 1)] for name in ("plain", "wide"))
    maps = [compute(found, scenes.SCHEMA).overall.mAP for found in second]
    assert rows["wide"]["figures"]["mAP"]["mean"] == pytest.approx(sum(maps) / 2)
    assert rows["wide"]["figures"]["mAP"]["deviation"] == pytest.approx(abs(maps[0] - maps[1]) / 2**0.5)
    assert rows["wide-tenth"]["figures"]["mAP"]["deviation"] is None
    expected = bootstrap.compare(first, second)
    assert rows["wide"]["comparison"]["mAP"] == {**expected._asdict(), "verdict": "helps"}
    assert rows["wide"]["comparison"]["time"] == pytest.approx(2.0)
    assert rows["plain"]["comparison"] is None
    same = bootstrap.compare(second, second[:1])  # wide-tenth's one run is wide's first
    assert rows["wide-tenth"]["comparison"]["mAP"]["difference"] == pytest.approx(same.difference)
    groups = [
        {group.name: group.mAP for group in compute(p, scenes.SCHEMA).groups} for p in (*first, *second)
    ]
    shape = (groups[2]["shape"] + groups[3]["shape"] - groups[0]["shape"] - groups[1]["shape"]) / 2
    assert rows["wide"]["comparison"]["groups"]["shape"] == pytest.approx(shape)
    assert "compared with plain" in text
    assert re.search(r"wide +2 .*1\.2 M +2\.00x .*helps", text)
    assert "worst group" not in text  # no run has one


def test_worst_groups_are_compared_where_a_factor_is_known(planned, capsys):
    _, planned_runs = planned
    names = scenes.SCHEMA.attributes
    values = np.zeros(len(predictions(0, 1.0).index), int)  # one ground, so that cells are large enough
    factors = Factors(names, {"ground": SpuriousFactor(values, names)})
    for run in planned_runs[:-1]:
        pretend_to_train(run)
        pretend_to_evaluate(run, SIGNALS[run.row.name], factors)
    assert sweep_again(planned, "--only", "plain", "wide") == ExitCode.DONE
    text = capsys.readouterr().out
    first, second = ([predictions(seed, SIGNALS[name]) for seed in (0, 1)] for name in ("plain", "wide"))
    score = functools.partial(resampled_worst_group, attributes=names, factors=factors.factors)
    expected = bootstrap.compare(first, second, score=score)
    assert not np.isnan(expected.difference)
    kept = read_factors(planned_runs[0].workdir)
    assert kept.attributes == names
    assert kept.factors["ground"].attributes == names
    np.testing.assert_array_equal(kept.factors["ground"].values, values)
    workdir = planned_runs[0].workdir.parent.parent
    rows = {row["name"]: row for row in json.loads((workdir / "sweep.json").read_text())["rows"]}
    assert rows["wide"]["comparison"]["worst_group"] == {**expected._asdict(), "verdict": expected.verdict}
    for shown in (text, (workdir / "sweep.md").read_text(), (workdir / "sweep.html").read_text()):
        assert "worst group - reference" in shown


def test_markdown_and_page_show_every_row_in_its_block(finished):
    assert sweep_again(finished, "--only", "plain") == ExitCode.DONE
    workdir = finished[1][0].workdir.parent.parent
    markdown = (workdir / "sweep.md").read_text()
    assert markdown.index("## Compared with plain") < markdown.index("## Compared with wide")
    assert "| helps | twice the width |" in markdown
    assert "Not finished: wide-tenth/seed_1." in markdown
    widths = {line.count("|") for line in markdown.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    page = (workdir / "sweep.html").read_text()
    assert "http" not in page
    assert Tags.unclosed(page) == []
    assert page.count("Difference in mAP by attribute group") == 2
    assert "--config.weak_labels.known_fraction=0.1" in page


class Tags(HTMLParser):
    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    @classmethod
    def unclosed(cls, page: str) -> list[str]:
        parser = cls()
        parser.feed(page)
        return parser.open

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_failing_run_is_named_after_the_tables_are_written(finished, monkeypatch, capsys):
    script = "import sys; print('wsca: the disk is full', file=sys.stderr); sys.exit(4)"
    monkeypatch.setattr(runs, "_wsca", lambda *words: [sys.executable, "-S", "-c", script])
    assert sweep_again(finished) == ExitCode.OUT_OF_DISK
    errors = capsys.readouterr().err
    assert "wsca: 1 of 6 runs failed: wide-tenth/seed_1: the disk is full\n" in errors
    assert (finished[1][0].workdir.parent.parent / "sweep.html").exists()


def test_rows_evaluated_on_other_images_are_not_compared(finished, capsys):
    run = finished[1][0]
    other = predictions(0, 1.0)
    figures = read_figures(run.workdir)
    write_evaluation(run.workdir, "validation", figures, other._replace(labels=1 - other.labels))
    assert sweep_again(finished, "--only", "plain") == ExitCode.BAD_INPUT
    assert (
        "row 'wide' and its reference 'plain': the runs were evaluated on different"
        in capsys.readouterr().err
    )


def test_two_sweeps_do_not_share_a_folder(finished, capsys):
    workdir = finished[1][0].workdir.parent.parent
    with sweeps._locked(workdir), pytest.raises(WscaError, match="is at work here"):
        sweeps.sweep(finished[0], workdir=workdir)


def test_the_sweep_itself_leaves_the_accelerator_to_its_runs(finished):
    """A process that touches jax's devices takes most of a GPU's memory; here, touching them is an error."""
    workdir = finished[1][0].workdir.parent.parent
    words = ["sweep", "--sweep", finished[0], "--workdir", str(workdir), "--only", "plain", "wide"]
    done = subprocess.run(
        [sys.executable, "-m", "wsca_jax.cli", *words],
        env=os.environ | {"JAX_PLATFORMS": "none_such"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# The real thing.


COMMAND_LINE = f"{HEAR_INTERRUPTS}; import sys; from wsca_jax import cli; sys.exit(cli.main())"


def start(*words: str) -> subprocess.Popen:
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND_LINE, "sweep", "--sweep", EXAMPLE, *words],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_sweep_interrupted_and_started_again_trains_each_run_once(tmp_path):
    workdir = tmp_path / "w"
    log = workdir / "baseline/seed_0/metrics.jsonl"
    process, begun = start("--workdir", str(workdir)), time.monotonic()
    while not (log.exists() and '"train"' in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == ExitCode.INTERRUPTED, errors
    assert list((workdir / "baseline/seed_0/checkpoints").glob("*/manifest.json"))

    again = start("--workdir", str(workdir), "--jobs", "2")
    output, errors = again.communicate(timeout=PATIENCE)
    assert again.returncode == ExitCode.DONE, errors
    assert "compared with baseline" in output
    record = json.loads((workdir / "sweep.json").read_text())
    assert [row["seeds"] for row in record["rows"]] == [[0, 1], [0, 1]]
    run = workdir / "no-decay/seed_1"
    stored = json.loads((run / "training_report.json").read_text())
    found = compute(read_predictions(run), scenes.SCHEMA)
    assert found.overall.mAP == pytest.approx(stored["results"]["overall"]["mAP"], abs=1e-9)
    assert stored["config"]["optimizer"]["weight_decay"] == 0.0

    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/seed_*/*")}
    third = start("--workdir", str(workdir))
    _, errors = third.communicate(timeout=PATIENCE)
    assert third.returncode == ExitCode.DONE, errors
    assert "4 runs, 4 of them finished before" in errors
    assert before == {path: path.stat().st_mtime_ns for path in workdir.glob("*/seed_*/*")}
