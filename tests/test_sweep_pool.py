"""The processes of a sweep: how many at a time, what is told of failures, and how all of them stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interrupts import HEAR_INTERRUPTS

from input_pipeline.cores import core_shares
from wsca_jax.sweep.pool import Job, run_all
from wsca_jax.sweep.progress import SweepProgress

PATIENCE = 600  # seconds for processes to begin, on a busy machine


class Quiet:
    """A stream that keeps what is printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        self.lines += [line for line in text.split("\n") if line]

    def flush(self) -> None:
        pass


def script_job(folder: Path, name: str, code: str, stages: int = 1) -> Job:
    """A job of `stages` processes, each of which adds a line to a file and then runs `code`."""
    path = folder / name

    def next_command():
        done = len(path.read_text().splitlines()) if path.exists() else 0
        body = f"open({str(path)!r}, 'a').write('{done}\\n')\n{code}"
        return [sys.executable, "-S", "-c", body] if done < stages else None

    return Job(name, folder / f"{name}.log", next_command)


def test_every_job_goes_to_its_end_and_failures_are_told_with_their_last_line(tmp_path):
    fail = "import sys; print('one'); print('out of luck', file=sys.stderr); print(''); sys.exit(3)"
    jobs = [
        script_job(tmp_path, "first", "", stages=2),
        script_job(tmp_path, "second", fail, stages=2),
        script_job(tmp_path, "third", "", stages=3),
        script_job(tmp_path, "before", "", stages=0),
    ]
    stream = Quiet()
    failures = run_all(jobs, 2, SweepProgress(4, stream=stream))
    assert failures == [("second", 3, "out of luck")]
    assert [len((tmp_path / name).read_text().split()) for name in ("first", "second", "third")] == [2, 1, 3]
    assert any("second: failed: out of luck" in line for line in stream.lines)
    assert stream.lines[-1].startswith("[4/4]")


def test_a_command_that_changes_nothing_is_not_started_for_ever(tmp_path):
    job = Job("stuck", tmp_path / "log", lambda: [sys.executable, "-S", "-c", "print('fine')"])
    [failure] = run_all([job], 1, SweepProgress(1, stream=Quiet()))
    assert "is not done" in failure.line


MEETING = """
import os, sys, time
folder, name, at_once = sys.argv[1], sys.argv[2], int(sys.argv[3])
open(f"{folder}/here-{name}", "w").close()
deadline = time.monotonic() + 60
while True:
    present = [other for other in os.listdir(folder) if other.startswith("here-")]
    if len(present) > at_once or time.monotonic() > deadline:
        sys.exit(1)
    if len(present) == at_once:
        break
    time.sleep(0.01)
with open(f"{folder}/met-{name}", "w") as file:
    file.write(",".join(map(str, sorted(os.sched_getaffinity(0)))))
while at_once == 2 and len([x for x in os.listdir(folder) if x.startswith("met-")]) < 2:
    time.sleep(0.01)
time.sleep(0.2)
os.remove(f"{folder}/here-{name}")
"""


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_more_processes_than_asked_for_and_no_fewer(tmp_path, at_once):
    """Each process waits until as many are there as may be, and fails where there are more.

    Two have a share of the cores each, which are all of them together.
    """

    def job(name: str) -> Job:
        command = [sys.executable, "-S", "-c", MEETING, str(tmp_path), name, str(at_once)]
        return Job(
            name,
            tmp_path / "log",
            lambda: None if (tmp_path / f"met-{name}").exists() else command,
        )

    jobs = [job("a"), job("b")]
    assert run_all(jobs, at_once, SweepProgress(2, stream=Quiet())) == []
    mine = os.sched_getaffinity(0)
    shares = [set(map(int, (tmp_path / f"met-{name}").read_text().split(","))) for name in "ab"]
    if at_once == 1 or len(mine) == 1:
        assert shares == [mine, mine]
    else:
        assert shares[0] | shares[1] == mine
        assert not shares[0] & shares[1]


def test_a_single_job_has_all_cores_however_many_may_run(tmp_path):
    write = "import os, sys; open(sys.argv[1], 'w').write(str(sorted(os.sched_getaffinity(0))))"
    told = tmp_path / "cores"
    command = [sys.executable, "-S", "-c", "import time; time.sleep(0.2); " + write, str(told)]
    job = Job("a", tmp_path / "log", lambda: None if told.exists() else command)
    assert run_all([job], 2, SweepProgress(1, stream=Quiet())) == []
    assert told.read_text() == str(sorted(os.sched_getaffinity(0)))


def test_cores_are_dealt_out_evenly_or_not_at_all(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 2, 4, 5, 6})
    assert core_shares(2) == [{1, 2}, {4, 5, 6}]
    assert core_shares(5) == [{1}, {2}, {4}, {5}, {6}]
    assert core_shares(1) == core_shares(6) == []


DRIVER = """
import sys
from pathlib import Path
from wsca_jax.errors import WscaError
from wsca_jax.sweep.pool import Job, run_all
from wsca_jax.sweep.progress import SweepProgress
folder = Path(sys.argv[1])
child = '''
import signal, sys, time
def save(number, frame):
    time.sleep(0.3)
    open(sys.argv[1] + "/saved", "w").close()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, lambda *_: open(sys.argv[1] + "/interrupted", "w").close())
open(sys.argv[1] + "/begun", "w").close()
time.sleep(60)
'''
job = Job("run", folder / "log.txt", lambda: [sys.executable, "-S", "-c", child, str(folder)])
try:
    run_all([job, job], 1, SweepProgress(2))
except KeyboardInterrupt:
    sys.exit(130)
except WscaError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_stopping_waits_until_the_running_ones_have_saved(tmp_path, number, code):
    driver = subprocess.Popen(
        [sys.executable, "-c", HEAR_INTERRUPTS + DRIVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    begun = time.monotonic()
    while not (tmp_path / "begun").exists():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.02)
    os.killpg(driver.pid, number)  # as a terminal does
    output, errors = driver.communicate(timeout=60)
    assert driver.returncode == code, output + errors
    assert "each saves first" in errors
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "interrupted").exists()


def test_a_line_now_and_then_says_what_runs(tmp_path):
    now, stream = [0.0], Quiet()
    progress = SweepProgress(4, stream=stream, line_every=60, clock=lambda: now[0])
    (tmp_path / "log").write_text("compiling\nstep 3/9, loss 0.5\n\n")
    progress.began("a")
    now[0] = 59.0
    progress.tick([("a", tmp_path / "log")])
    now[0] = 61.0
    progress.tick([("a", tmp_path / "log"), ("b", tmp_path / "none")])
    now[0] = 120.0
    progress.finished("a")
    assert stream.lines == [
        "a: started",
        "[0/4] a: step 3/9, loss 0.5; b: starting",
        "[1/4, 6 min 00 s left] a: done (2 min 00 s)",
    ]
