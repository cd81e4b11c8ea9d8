"""Two real processes of two devices each, on one machine, held against one process of four.

Figures are the same up to `CLOSE`: sums over devices are taken in another order.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from runs import ROOT, arrays, log, overall, wait_for

from wsca_jax.cluster import LOST_AFTER
from wsca_jax.errors import ExitCode

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 1e-4, "atol": 1e-6}
PATIENCE = 400
TRAIN = (
    "train",
    "--config=configs/scenes.py:tiny",
    "--config.train.log_every=1",
    "--config.checkpoint.every_epochs=0.5",
)
LAST_STEP, SAVE_EVERY = 12, 3
SLOWLY = {"WSCA_PAUSE": "0.5"}


class Processes:
    """The same command in each of several processes; what each prints goes to a file."""

    def __init__(self, output: Path, *command: str, count: int = 2, own: dict | None = None, **environment):
        """`own`: {process: (more arguments, more environment)}."""
        output.mkdir(parents=True, exist_ok=True)
        self.prints = [output / f"process_{number}.log" for number in range(count)]
        place = ("--coordinator", f"localhost:{free_port()}", "--processes", str(count), "--process")
        self.each = []
        for number, path in enumerate(self.prints):
            arguments, more = (own or {}).get(number, ((), {}))
            line = [sys.executable, str(ROOT / "tests/small_wsca.py"), *command, *arguments]
            line += [*place, str(number)] if count > 1 else []
            devices = f"--xla_force_host_platform_device_count={4 // count} "
            flags = {"XLA_FLAGS": devices + "--xla_backend_optimization_level=0", "PYTHONPATH": str(ROOT)}
            with path.open("w") as file:
                self.each.append(
                    subprocess.Popen(
                        line,
                        env=os.environ | flags | environment | more,
                        cwd=ROOT,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def codes(self, patience: float = PATIENCE) -> list[int]:
        """Exit codes, once all have ended; none outlives a test."""
        limit = time.monotonic() + patience
        try:
            return [process.wait(max(0.1, limit - time.monotonic())) for process in self.each]
        finally:
            for process in self.each:
                process.kill()

    def printed(self, number: int) -> str:
        return self.prints[number].read_text()

    def complaints(self, number: int) -> list[str]:
        return [line for line in self.printed(number).splitlines() if line.startswith("wsca: ")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def run(output: Path, *command: str, count: int) -> Processes:
    processes = Processes(output, *command, count=count)
    assert processes.codes() == [0] * count, [processes.printed(number) for number in range(count)]
    return processes


def interrupted(workdir: Path, count: int, number: int, how: signal.Signals) -> Processes:
    """A run one of whose processes got a signal after its first save."""
    processes = Processes(
        workdir.parent / "interrupted", *TRAIN, "--workdir", str(workdir), count=count, **SLOWLY
    )
    try:
        saved = workdir / "checkpoints" / str(SAVE_EVERY) / "manifest.json"
        wait_for(processes.each[number], processes.prints[number].with_suffix(""), saved.exists)
    finally:
        processes.each[number].send_signal(how)
    return processes


def resume(workdir: Path, count: int) -> None:
    processes = run(workdir.parent / "resumed", *TRAIN, "--workdir", str(workdir), count=count)
    assert "resuming after step" in processes.printed(0)


def assert_close(workdir: Path, alone: Path) -> None:
    """Every array of the last state and every logged value."""
    rows, expected = log(workdir), log(alone)
    assert [(row["step"], row["kind"]) for row in rows] == [(row["step"], row["kind"]) for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["values"].keys() == other["values"].keys()
        for name, value in row["values"].items():
            np.testing.assert_allclose(
                float(value), float(other["values"][name]), err_msg=f"{row['step']} {name}", **CLOSE
            )
    found, whole = arrays(workdir, LAST_STEP), arrays(alone, LAST_STEP)
    assert found.keys() == whole.keys()
    for path, value in whole.items():
        np.testing.assert_allclose(found[path], value, err_msg=path, **CLOSE)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """An uninterrupted run of one process with four devices."""
    folder = tmp_path_factory.mktemp("alone")
    run(folder, *TRAIN, "--workdir", str(folder / "run"), count=1)
    return folder / "run"


def test_two_processes_train_as_one(alone, tmp_path):
    processes = run(tmp_path, *TRAIN, "--workdir", str(tmp_path / "run"), count=2)
    assert_close(tmp_path / "run", alone)
    assert "step 12" in processes.printed(0)
    assert "step 12" not in processes.printed(1)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_two_processes_measure_as_one(alone, tmp_path):
    found = {}
    for count in (1, 2):
        processes = run(tmp_path, "evaluate", "--workdir", str(alone), "--split", "test", count=count)
        found[count] = (
            overall(alone / "evaluation_test.json"),
            np.load(alone / "evaluation_test.npz")["index"],
        )
        (alone / "evaluation_test.json").unlink()
    assert "mAP" not in processes.printed(1)
    np.testing.assert_array_equal(found[1][1], found[2][1])
    assert found[1][0] == pytest.approx(found[2][0], abs=1e-5)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_sigterm_to_one_saves_once_and_any_number_resumes(alone, tmp_path, first, then):
    workdir = tmp_path / "run"
    processes = interrupted(workdir, first, first - 1, signal.SIGTERM)
    assert processes.codes() == [ExitCode.PREEMPTED] * first, [processes.printed(n) for n in range(first)]
    lines = [processes.complaints(number) for number in range(first)]
    assert [len(line) for line in lines] == [1] * first
    step = re.search(r"SIGTERM: saved step (\d+) of 12", lines[0][0]).group(1)
    assert lines == [lines[0]] * first
    assert (workdir / "checkpoints" / step / "manifest.json").exists()
    resume(workdir, then)
    assert_close(workdir, alone)


@pytest.mark.parametrize(("killed", "then"), [(1, 2), (0, 1)])
def test_where_one_is_killed_the_other_ends_and_the_run_can_go_on(alone, tmp_path, killed, then):
    workdir = tmp_path / "run"
    processes = interrupted(workdir, 2, killed, signal.SIGKILL)
    codes = processes.codes(patience=LOST_AFTER + 60)
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == -signal.SIGABRT, processes.printed(1 - killed)
    resume(workdir, then)
    assert_close(workdir, alone)


@pytest.mark.parametrize(
    ("fault", "code", "complaint", "within"),
    [
        pytest.param({"WSCA_BAD_BATCH": "4"}, ExitCode.BAD_INPUT, "cannot be read", 30, id="bad data"),
        pytest.param({"WSCA_FILE_LIMIT": "10000"}, ExitCode.OUT_OF_DISK, "disk is full", 60, id="full disk"),
    ],
)
def test_what_ends_one_ends_both_with_its_code_and_one_line_each(tmp_path, fault, code, complaint, within):
    own = {1: ((), fault)}
    processes = Processes(tmp_path, *TRAIN, "--workdir", str(tmp_path / "run"), own=own, **SLOWLY)
    processes.each[1].wait(PATIENCE)
    assert processes.codes(patience=within) == [code] * 2, processes.printed(0)
    [mine], [heard] = processes.complaints(1), processes.complaints(0)
    assert complaint in mine
    assert heard == f"wsca: process 1 of 2 ended the run: {mine.removeprefix('wsca: ')}"


def test_processes_of_different_runs_do_not_begin(tmp_path):
    own = {1: (("--config.seed=1",), {})}
    processes = Processes(tmp_path, *TRAIN, "--workdir", str(tmp_path / "run"), own=own)
    assert processes.codes() == [ExitCode.BAD_INPUT] * 2
    for number in range(2):
        [line] = processes.complaints(number)
        assert "seed is 1 in process 1 and 0 in process 0" in line
    assert not (tmp_path / "run").exists()


def test_processes_that_do_not_meet_say_so(tmp_path):
    code = "import sys; from wsca_jax import cli, cluster; cluster.JOIN_WITHIN = 3; sys.exit(cli.main())"
    place = ("--coordinator", f"localhost:{free_port()}", "--processes", "2", "--process", "1")
    line = [sys.executable, "-c", code, *TRAIN, "--workdir", str(tmp_path / "run"), *place]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "did not all meet within 3 s" in done.stderr
    assert not (tmp_path / "run").exists()
