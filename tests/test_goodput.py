"""Goodput: the ledger's arithmetic by hand, what a crash leaves of it, and real runs that are killed."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import random_kills
from runs import PATIENCE, ROOT, wait_for

from wsca_jax.errors import WscaError
from wsca_jax.goodput import (
    BEGUN,
    ENDED,
    LEDGER_FILE,
    RUNNING,
    SAVED,
    Entry,
    Ledger,
    account,
    format_goodput,
    read_ledger,
)
from wsca_jax.timing import STARTING, Stopwatch, process_began

START = {"imports": 2.0, "open": 1.0, "state": 3.0}


def entry(life: int, first: int, number: int, event: str, /, began: float = 0.0, **seconds: float) -> Entry:
    return Entry(life, began, first, number, event, START | seconds)


def check_sums(found, entries):
    """The parts are the time that the lives lived, and what is lost is one of the two kinds of loss."""
    lived = sum(
        sum({line.life: line for line in entries}[life].seconds.values())
        for life in range(1, found.lives + 1)
    )
    assert found.wall == pytest.approx(lived)
    assert found.seconds["lost"] == pytest.approx(found.redone_seconds + found.restart_seconds)


def test_one_life_loses_nothing():
    lines = [
        entry(1, 0, 0, BEGUN),
        entry(1, 0, 4, SAVED, compile=10.0, data_wait=1.0, step=4.0, checkpoint=0.5),
        entry(
            1, 0, 8, ENDED, compile=10.0, data_wait=2.0, step=8.0, checkpoint=1.0, evaluation=2.0, other=1.0
        ),
    ]
    found = account(lines)
    assert found.seconds == {
        "productive": 8.0,
        "compile": 10.0,
        "data": 2.0,
        "checkpoint": 1.0,
        "evaluation": 2.0,
        "start": 6.0,
        "other": 1.0,
        "lost": 0.0,
    }
    assert found.share == 8 / 30
    assert (found.lives, found.kept_steps, found.lost_steps) == (1, 8, 0)
    check_sums(found, lines)


def test_a_killed_life_keeps_what_it_had_spent_at_the_save_that_was_restored():
    lines = [
        entry(1, 0, 4, SAVED, compile=10.0, data_wait=1.0, step=4.0, checkpoint=0.5),
        entry(1, 0, 4, RUNNING, compile=10.0, data_wait=1.5, step=4.0, checkpoint=0.5),
        entry(1, 0, 7, RUNNING, compile=10.0, data_wait=2.0, step=7.0, checkpoint=0.5, evaluation=1.5),
        # 27 s after it began the first one wrote its last line; the second one began 5 s later.
        entry(2, 4, 4, BEGUN, began=32.0),
        entry(2, 4, 9, ENDED, began=32.0, compile=9.0, data_wait=0.5, step=5.0, checkpoint=0.25),
    ]
    found = account(lines)
    assert found.seconds["productive"] == 4.0 + 5.0
    assert found.seconds["data"] == 1.0 + 0.5
    assert found.seconds["checkpoint"] == 0.5 + 0.25
    assert found.seconds["evaluation"] == 0.0
    assert found.seconds["compile"] == 10.0
    assert found.seconds["start"] == 6.0
    assert found.redone_seconds == pytest.approx(1.0 + 3.0 + 1.5)
    assert found.restart_seconds == pytest.approx(6.0 + 9.0)
    assert (found.kept_steps, found.lost_steps) == (9, 3)
    assert found.unrecorded_seconds == pytest.approx(5.0)
    assert found.between_seconds == 0.0
    check_sums(found, lines)
    assert "2 lives: 3 steps lost" in format_goodput(found)


def test_a_life_that_ends_in_order_loses_nothing_but_the_next_one_s_start():
    lines = [
        entry(1, 0, 4, SAVED, compile=10.0, step=4.0, checkpoint=0.5),
        entry(1, 0, 4, ENDED, compile=10.0, step=4.0, checkpoint=2.5),
        entry(2, 4, 9, ENDED, began=122.5, compile=9.0, step=5.0),
    ]
    found = account(lines)
    assert (found.lost_steps, found.redone_seconds) == (0, 0.0)
    assert found.restart_seconds == 6.0 + 9.0
    assert found.seconds["checkpoint"] == 2.5
    assert (found.unrecorded_seconds, found.between_seconds) == (0.0, 100.0)
    check_sums(found, lines)


def test_of_a_life_that_saved_nothing_all_is_lost_and_the_next_one_begins_the_run():
    lines = [
        entry(1, 0, 3, RUNNING, compile=10.0, step=3.0),
        entry(2, 0, 9, ENDED, compile=8.0, step=9.0),
    ]
    found = account(lines)
    assert found.seconds["compile"] == 8.0
    assert (found.restart_seconds, found.redone_seconds) == (16.0, 3.0)
    assert (found.kept_steps, found.lost_steps) == (9, 3)
    check_sums(found, lines)


def test_a_damaged_checkpoint_loses_the_work_of_several_lives():
    lines = [
        entry(1, 0, 2, SAVED, step=2.0),
        entry(1, 0, 4, SAVED, step=4.0),
        entry(1, 0, 4, RUNNING, step=4.0),
        entry(2, 4, 6, SAVED, step=2.5),
        entry(2, 4, 7, RUNNING, step=3.5),
        entry(3, 2, 8, ENDED, step=6.0),  # both newer ones were in quarantine
    ]
    found = account(lines)
    assert found.seconds["productive"] == 2.0 + 6.0
    assert found.redone_seconds == pytest.approx(2.0 + 3.5)
    assert found.restart_seconds == 12.0
    assert (found.kept_steps, found.lost_steps) == (8, 2 + 3)
    check_sums(found, lines)


def test_killed_between_a_save_and_its_line_counts_as_lost_what_has_no_line():
    begun = [entry(1, 0, 1, RUNNING, step=1.0), entry(1, 0, 2, RUNNING, step=2.0)]
    found = account([*begun, entry(2, 3, 5, ENDED, step=2.0)])
    assert (found.seconds["productive"], found.redone_seconds) == (2.0 + 2.0, 0.0)
    assert found.kept_steps == 4  # of step 3, which was kept, nothing is recorded


# The file.


def test_a_torn_last_line_is_dropped_before_the_next_life_writes(tmp_path):
    clock = Stopwatch(("step",))
    with Ledger(tmp_path, 0, clock) as ledger:
        ledger.looked_at(1)
        ledger.saved()
    path = tmp_path / LEDGER_FILE
    whole = read_ledger(tmp_path)
    assert [line.event for line in whole] == [BEGUN, SAVED, ENDED]
    path.write_text(path.read_text() + '{"life": 1, "beg')
    assert read_ledger(tmp_path) == whole
    with Ledger(tmp_path, 1, clock):
        pass
    lines = read_ledger(tmp_path)
    assert lines[:3] == whole
    assert [(line.life, line.first_step, line.step) for line in lines[3:]] == [(2, 1, 1)] * 2


def test_what_is_no_ledger_is_named_in_one_line(tmp_path):
    (tmp_path / LEDGER_FILE).write_text('{"life": 1}\n')
    with pytest.raises(WscaError, match=r"lives\.jsonl, line 1: expected what a process spent"):
        Ledger(tmp_path, 0, Stopwatch(()))


def test_lines_are_few_however_many_steps(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with Ledger(tmp_path, 0, Stopwatch(("step",))) as ledger:
        for step in range(1, 40_001):
            now[0] += 0.25
            ledger.looked_at(step)
    lines = read_ledger(tmp_path)
    assert len(lines) < 600  # 10,000 s: one a second at first, then one each hundredth of the life
    gaps = [
        (b.written - a.written) / max(1.0, 0.01 * (a.written - a.began)) for a, b in itertools.pairwise(lines)
    ]
    assert max(gaps) < 1.3


def test_other_processes_write_nothing(tmp_path):
    with Ledger(tmp_path, 0, Stopwatch(()), active=False) as ledger:
        ledger.looked_at(1)
        ledger.saved()
    assert not (tmp_path / LEDGER_FILE).exists()


def test_a_process_knows_when_it_began():
    begun = time.perf_counter()
    script = (
        "import time; time.sleep(0.5); from wsca_jax.timing import process_began; "
        "print(time.perf_counter() - process_began())"
    )
    age = float(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert 0.5 <= age <= time.perf_counter() - begun + 0.02
    assert process_began() < begun


# Real runs.


def report(workdir: Path) -> dict:
    return json.loads((workdir / "training_report.json").read_text())


def check_parts(workdir: Path) -> dict:
    """The parts of a real run sum to what its processes wrote that they lived; returns its goodput."""
    found = report(workdir)["goodput"]
    last = {line.life: line for line in read_ledger(workdir)}
    lived = sum(sum(line.seconds.values()) for line in last.values())
    assert sum(found["seconds"].values()) == pytest.approx(lived)
    assert found["wall_seconds"] == pytest.approx(lived)
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    assert found["goodput"] == pytest.approx(found["seconds"]["productive"] / lived)
    return found


@pytest.mark.slow
def test_an_undisturbed_run_loses_nothing_and_its_parts_are_its_wall_time(tmp_path):
    workdir = tmp_path / "run"
    begun = time.monotonic()
    random_kills.finish(random_kills.start(workdir), workdir)
    took = time.monotonic() - begun
    found = check_parts(workdir)
    assert (found["lives"], found["kept_steps"], found["lost_steps"]) == (1, 24, 0)
    assert found["seconds"]["lost"] == 0.0
    assert found["seconds"]["data"] >= 2.0  # 24 batches of 0.1 s, some of them prepared ahead
    # The process's end is not in it: the report itself, with its figures, and the interpreter's own.
    assert 0 < took - found["wall_seconds"] < 15
    whole = report(workdir)
    first = whole["first_step_seconds"]
    assert first["total"] == pytest.approx(sum(first.values()) - first["total"])
    assert first["imports"] > 0.1
    assert first["total"] < found["wall_seconds"]
    assert whole["save_pause_seconds"]["saves"] == 8
    assert 0 < whole["save_pause_seconds"]["median"] <= whole["save_pause_seconds"]["largest"]
    printed = workdir.with_suffix(".log").read_text()
    assert "first step after" in printed
    assert "Goodput: " in printed


def start_slowly(workdir: Path) -> subprocess.Popen:
    """A run that saves at steps 12 and 24 and takes a quarter of a second for each."""
    command = [*random_kills.COMMAND, str(workdir), "--config.checkpoint.every_epochs=2"]
    environment = os.environ | random_kills.ENVIRONMENT | {"WSCA_PAUSE": "0.25"}
    with workdir.with_suffix(".log").open("a") as file:
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=file, stderr=file)


@pytest.mark.slow
def test_a_killed_and_resumed_run_says_what_was_lost(tmp_path):
    workdir = tmp_path / "run"
    sealed = workdir / "checkpoints" / "12" / "manifest.json"
    process = start_slowly(workdir)
    try:
        wait_for(process, workdir, lambda: sealed.exists() and read_ledger(workdir)[-1].step >= 14)
    finally:
        process.kill()
    process.wait(PATIENCE)
    killed = read_ledger(workdir)[-1]
    assert (killed.event, killed.step > 12) == (RUNNING, True)
    random_kills.finish(start_slowly(workdir), workdir)
    found = check_parts(workdir)
    lives = read_ledger(workdir)
    assert [line.first_step for line in lives if line.event == BEGUN] == [0, 12]
    assert found["lives"] == 2
    assert found["kept_steps"] == 24
    assert found["lost_steps"] == killed.step - 12
    second = lives[-1].seconds
    assert found["restart_seconds"] == pytest.approx(sum(second[part] for part in STARTING))
    assert found["seconds"]["lost"] > found["restart_seconds"] > 1.0
    assert 0 < found["unrecorded_seconds"] < PATIENCE
    assert "2 lives: " in workdir.with_suffix(".log").read_text()
