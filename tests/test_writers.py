"""Logs that survive being cut off, TensorBoard files as TensorBoard reads them, progress shown."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wsca_jax.errors import WscaError
from wsca_jax.writers import Progress, RunWriter, cut_back, format_seconds, read_rows


def write_steps(workdir: Path, steps, resumed: int = 0, speed: float = 100.0) -> None:
    with RunWriter(workdir, resumed) as writer:
        for step in steps:
            writer.write(step, "train", {"loss": np.float32(1) / step}, {"images_per_second": speed + step})
            if step % 4 == 0:
                writer.write(step, "validation", {"mAP": step / 7})


def without_time(workdir: Path) -> list[str]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({k: v for k, v in row.items() if k != "time"}) for row in rows]


def tensorboard(workdir: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(workdir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def test_rows_hold_floats_in_full(tmp_path):
    values = {"third": 1 / 3, "single": np.float32(0.1), "tiny": 5e-324}
    with RunWriter(tmp_path) as writer:
        writer.write(3, "train", values)
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert (row.step, row.kind) == (3, "train")
    assert dict(row.values) == {name: float(value) for name, value in values.items()}


def test_numbers_json_has_no_word_for_come_back(tmp_path):
    with RunWriter(tmp_path) as writer:
        writer.write(1, "train", {"a": math.nan, "b": math.inf, "c": -math.inf})
    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert record["values"] == {"a": "nan", "b": "inf", "c": "-inf"}
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert math.isnan(row.values["a"])
    assert (row.values["b"], row.values["c"]) == (math.inf, -math.inf)


def test_tensorboard_reads_what_was_written(tmp_path):
    write_steps(tmp_path, range(1, 9))
    scalars = tensorboard(tmp_path)
    assert scalars["train/loss"] == [(s, pytest.approx(1 / s)) for s in range(1, 9)]
    assert scalars["validation/mAP"] == [(4, pytest.approx(4 / 7)), (8, pytest.approx(8 / 7))]
    assert scalars["train/time/images_per_second"][0] == (1, 101.0)


def test_a_resumed_run_has_the_uninterrupted_runs_logs(tmp_path):
    """Interrupted twice: after step 10 with a checkpoint of step 8, then at 9 with none newer."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    write_steps(whole, range(1, 17))
    write_steps(broken, range(1, 11))
    write_steps(broken, range(9, 10), resumed=8, speed=50.0)
    write_steps(broken, range(9, 17), resumed=8, speed=70.0)
    assert without_time(broken) == without_time(whole)
    for tag in ("train/loss", "validation/mAP"):
        assert tensorboard(broken)[tag] == tensorboard(whole)[tag]


def test_a_run_that_begins_anew_drops_older_rows(tmp_path):
    write_steps(tmp_path, range(1, 5))
    write_steps(tmp_path, range(1, 3), resumed=0)
    assert [row.step for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
    assert [step for step, _ in tensorboard(tmp_path)["train/loss"]] == [1, 2]


def test_rows_survive_a_killed_process(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from wsca_jax.writers import RunWriter\n"
        "writer = RunWriter(Path(sys.argv[1]))\n"
        "writer.write(1, 'train', {'loss': 1.0}); writer.flush()\n"
        "writer.write(2, 'train', {'loss': 2.0}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [row.step for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
    assert (1, 1.0) in tensorboard(tmp_path)["train/loss"]


def test_a_torn_last_line_is_cut_off(tmp_path):
    write_steps(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert [row.step for row in read_rows(path)] == [1, 2]
    write_steps(tmp_path, [3], resumed=2)
    assert [row.step for row in read_rows(path)] == [1, 2, 3]


def test_a_damaged_line_is_named(tmp_path):
    write_steps(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 2', '"stop": 2'))
    with pytest.raises(WscaError, match=r"metrics\.jsonl, line 2: expected a row"):
        RunWriter(tmp_path, 3)


def test_cutting_back_keeps_every_bit_of_what_stays(tmp_path):
    write_steps(tmp_path, range(1, 9))
    path = tmp_path / "metrics.jsonl"
    before = path.read_text()
    cut_back(path, 8)
    assert path.read_text() == before
    cut_back(path, 5)
    assert path.read_text() == "".join(before.splitlines(keepends=True)[:6])
    assert list(tmp_path.glob("*.partial")) == []


def test_only_the_first_process_writes(tmp_path):
    with RunWriter(tmp_path, active=False) as writer:
        writer.write(1, "train", {"loss": 1.0})
        writer.flush()
    assert list(tmp_path.iterdir()) == []


# Progress.


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_progress(stream, seconds_per_step=2.0, **options) -> Clock:
    clock = Clock()
    with Progress(total=20, steps_per_epoch=10, stream=stream, clock=clock, **options) as progress:
        for step in range(1, 21):
            clock.now += seconds_per_step
            progress.advance(step, images=32, loss=1 / step)
    return clock


def test_without_a_terminal_there_is_a_line_now_and_then():
    stream = io.StringIO()
    run_progress(stream)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 1/20, epoch 1/2, loss 1.0000"
    assert lines[1] == "step 9/20, epoch 1/2, loss 0.1111, 16 images/s, 22 s left"
    assert lines[-1] == "step 20/20, epoch 2/2, loss 0.0500, 16 images/s"
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("images", "epochs", "last"),
    [(1346, 12.0, "12/12"), (1331, 25.0, "25/25"), (320, 2.5, "3/3"), (320, 0.5, "1/1")],
)
def test_a_run_has_the_epochs_it_was_asked_for(images, epochs, last):
    """Also where they are no whole number of steps."""
    per_epoch, stream = images / 32, io.StringIO()
    total = round(epochs * per_epoch)
    with Progress(total=total, start=total - 1, steps_per_epoch=per_epoch, stream=stream) as progress:
        progress.advance(total, images=32, loss=0.5)
    assert f"step {total}/{total}, epoch {last}, loss" in stream.getvalue()


def test_on_a_terminal_there_is_one_bar():
    stream = Terminal()
    run_progress(stream)
    shown = stream.getvalue()
    assert "epoch 2/2" in shown
    assert "16 images/s" in shown
    assert "\n" not in shown.rstrip("\n")


def test_waiting_for_data_is_shown_once_it_is_known():
    stream = io.StringIO()
    clock = Clock()
    with Progress(total=2, stream=stream, clock=clock, line_every=0.0) as progress:
        progress.advance(1, 32, 0.5)
        clock.now += 1.0
        progress.advance(2, 32, 0.5, data_wait=0.0149)
    assert stream.getvalue().splitlines() == [
        "step 1/2, loss 0.5000",
        "step 2/2, loss 0.5000, 32 images/s, 1.5 % data wait",
    ]


def test_notes_stay_above_the_bar():
    stream = Terminal()
    with Progress(total=2, stream=stream) as progress:
        progress.advance(1, 1, 0.5)
        progress.note("validation mAP 0.5")
    assert "validation mAP 0.5\n" in stream.getvalue()


def test_a_pause_counts_for_the_time_left_but_not_for_the_rate():
    clock = Clock()
    progress = Progress(total=10, stream=io.StringIO(), clock=clock)
    for step in range(1, 7):
        clock.now += 1.0
        if step == 4:
            with progress.paused("evaluating"):
                clock.now += 10.0
        progress.advance(step, images=8, loss=0.1)
    assert progress.images_per_second == pytest.approx(8.0)
    assert progress.seconds_left == pytest.approx((5 + 10) / 5 * 4)


def test_a_resumed_run_measures_its_own_speed():
    clock = Clock()
    progress = Progress(total=100, start=90, stream=io.StringIO(), clock=clock)
    for step in (91, 92):
        clock.now += 3.0
        progress.advance(step, images=1, loss=0.1)
    assert progress.seconds_left == pytest.approx(24.0)


def test_other_processes_show_nothing():
    stream = Terminal()
    run_progress(stream, active=False)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(7.6, "8 s"), (185, "3 min 05 s"), (8040, "2 h 14 min")])
def test_seconds_read_well(seconds, text):
    assert format_seconds(seconds) == text
